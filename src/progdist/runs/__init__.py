"""Runs of recipes: stages, folders, reports, estimates."""
