"""What a run is: the schema, YAML files, the recipe for a given teacher, the presets."""
