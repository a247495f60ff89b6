"""Estimates of a run before it begins: hours and memory."""
