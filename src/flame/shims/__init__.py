"""Ways to run an instance, one file each, behind the interface in `shim.py`."""
