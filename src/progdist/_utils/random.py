"""Random numbers as a function of position: (seed, stage, update) and the like, the same on every machine.

Stages count from 0, the teacher. What is drawn apart from all training has a stage number of its own.
"""

import numpy as np
import torch

EVALUATION_NOISE = 1_000_000
"""Stage number of the noise of a run's evaluations."""

SAMPLING_NOISE = 2_000_000
"""Stage number of the noise of `progdist sample`."""

HELD_OUT_NOISE = 3_000_000
"""Stage number of the noise of held-out losses; the number of the stage is added."""


def stage_seed(seed: int, number: int) -> int:
    """The seed of the dropout masks and adapters of one stage (0: the teacher) of a run with a seed."""
    return seed + 7919 * number


def generator(*position: int) -> torch.Generator:
    """A CPU generator for one position, e.g. (seed, stage, update): nonnegative integers."""
    word = np.random.SeedSequence(position).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))
