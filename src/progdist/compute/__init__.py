"""How networks are computed on the machine at hand: precision, placement, CUDA graphs."""
