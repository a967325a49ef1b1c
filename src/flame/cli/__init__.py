"""The command line tools: flmctl, flmadm, flmping."""
