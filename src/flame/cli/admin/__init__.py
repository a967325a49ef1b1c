"""The commands of flmadm, one module each."""
