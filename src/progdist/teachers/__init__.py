"""Where teachers come from: folders of ours and of stock diffusers, and the paper's JAX checkpoints."""
