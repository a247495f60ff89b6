"""Kept for the code in model cards of version 0.1.0: `Wish` and `make`, now in `progdist.evaluation.generate`."""

from progdist.evaluation.generate import SamplingOptions as Wish
from progdist.evaluation.generate import generate_images as make

__all__ = ["Wish", "make"]
