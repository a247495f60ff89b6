"""Recipes of runs: the schema, YAML files, the recipe for a teacher, the presets."""
