"""Random numbers as a function of position: (seed, stage, update) and the like, the same on every machine.

Stages count from 0, the teacher. What is drawn apart from all training has a stage number of its own.
"""

from collections.abc import Sequence

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


def seeds(rows: Sequence[int], *position: int) -> list[int]:
    """A seed for each of some rows of a batch at one position, e.g. (seed, stage, update): whatever the other rows are.

    Row n has the words that SplitMix64 makes of word + n (Steele et al. 2014, doi 10.1145/2660193.2660195), which is
    one to one, so that no two rows of a batch share a generator.
    """
    word = np.random.SeedSequence(position).generate_state(1, np.uint64)
    z = word + (np.asarray(rows, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).tolist()


def generator(*position: int) -> torch.Generator:
    """A CPU generator for one position, e.g. (seed, stage, update): nonnegative integers."""
    word = np.random.SeedSequence(position).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))
