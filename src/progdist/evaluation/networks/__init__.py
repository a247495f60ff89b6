"""Networks whose features are compared, and where their weights come from."""
