"""Images in: sources, formats, latents, grids."""
