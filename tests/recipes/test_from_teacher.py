"""Chains proposed for a teacher's number of timesteps."""

from itertools import pairwise

import pytest

from progdist import UserError
from progdist.recipes.from_teacher import divisor_chain


@pytest.mark.parametrize(
    ("timesteps", "target", "start", "chain"),
    [
        (1000, 4, 256, [200, 40, 8, 4]),
        (1000, 1, 1000, [1000, 200, 40, 8, 4, 2, 1]),
        (1024, 4, 256, [256, 128, 64, 32, 16, 8, 4]),
        (1000, 8, 100, [40, 8]),
    ],
)
def test_proposed_chains(timesteps: int, target: int, start: int, chain: list[int]) -> None:
    assert divisor_chain(timesteps, target, start) == chain
    assert all(a % b == 0 for a, b in pairwise(chain))
    assert all(timesteps % count == 0 for count in chain)


@pytest.mark.parametrize(("target", "start", "message"), [(3, 256, "choose one of 1, 2, 4, 5"), (4, 4, "at least 8")])
def test_no_chain(target: int, start: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        divisor_chain(1000, target, start)
