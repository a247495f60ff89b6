"""The mathematics of diffusion; imports torch alone."""
