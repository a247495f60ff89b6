"""How networks are computed on a machine: precision, placement, CUDA graphs."""
