"""Samples, features and distances."""
