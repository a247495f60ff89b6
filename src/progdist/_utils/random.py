"""Random numbers as a function of position: (seed, stage, update) and the like, the same on every machine.

Stages count from 0, the teacher. What is drawn apart from all training has a stage number of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch

EVALUATION_NOISE = 1_000_000  # stage number of the noise of a run's evaluations
SAMPLING_NOISE = 2_000_000  # stage number of the noise of `progdist sample`
HELD_OUT_NOISE = 3_000_000  # stage number of the noise of held-out losses; the number of the stage is added
CROPS = 4_000_000  # stage number of the places at which images are cropped


def position_seed(*position: int) -> int:
    """A seed of 64 bits for one position, e.g. (seed, stage, update): nonnegative integers."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0])


def seeds(rows: Sequence[int], *position: int) -> list[int]:
    """A seed for each of some rows of a batch at one position, e.g. (seed, stage, update): whatever the other rows are.

    Row n has mix(word + n) in 32 bits, which are all that torch's CPU generator takes of a seed. The mixing is that of
    MurmurHash3 (Appleby 2011), which is one to one, so that no two rows of a batch share a generator.
    """
    word = np.random.SeedSequence(position).generate_state(1, np.uint32)
    z = word + np.asarray(rows, dtype=np.uint32)
    z = (z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    z = (z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (z ^ (z >> np.uint32(16))).tolist()


def generator(*position: int) -> torch.Generator:
    """A CPU generator for one position, e.g. (seed, stage, update): nonnegative integers."""
    return torch.Generator().manual_seed(position_seed(*position))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from on a device: what torch.manual_seed does for every kind of device.

    That looks for each kind, and takes a millisecond where there is only a CPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
