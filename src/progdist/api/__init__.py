"""The calls: what a program of your own asks for by name; see `progdist.__init__`."""
