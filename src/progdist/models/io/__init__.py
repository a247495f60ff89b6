"""Models on disk: read as untrusted, written as diffusers reads them."""
