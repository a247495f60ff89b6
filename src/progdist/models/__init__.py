"""Networks and autoencoders, and their folders."""
