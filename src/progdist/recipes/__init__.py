"""What a run is: the schema, YAML files, the recipe for a teacher, the presets."""
