"""Networks whose features are compared, and the sources of their weights."""
