"""The functions of the Python interface, exported by `progdist.__init__`."""
