"""Estimates of a run before it starts: hours and memory."""
