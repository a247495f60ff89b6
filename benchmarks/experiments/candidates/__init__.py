"""Methods that were tried beside those of `progdist.methods`: one file each, measured by `other_methods.py`."""
