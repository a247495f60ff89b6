"""Text-conditional models: stock pipelines, prompts, captions, guidance as an input."""
