"""The commands of flmctl, one module each."""
