"""Sandboxes: places of their own to run code, commands and files in, through sessions of the application `flmexec`."""
