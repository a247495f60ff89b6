"""Tiny pipelines of diffusers, their weights random, by what they make."""
