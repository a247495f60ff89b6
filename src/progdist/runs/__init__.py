"""Recipes carried out: stages, folders, reports, estimates."""
