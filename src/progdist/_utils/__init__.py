"""Helpers without a subject of their own: errors, files, random numbers, signals."""
