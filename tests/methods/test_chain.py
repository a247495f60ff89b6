"""Chains of step counts."""

import numpy as np
import pytest

from progdist import UserError
from progdist.methods.chain import halvings, stages


def test_chains() -> None:
    assert halvings(256, 4) == [256, 128, 64, 32, 16, 8, 4]
    assert halvings(64, 1, 4) == [64, 16, 4, 1]
    links = stages([1000, 500, 250, 125, 25, 5, 1])
    assert [(link.steps, link.substeps) for link in links] == [(500, 2), (250, 2), (125, 2), (25, 5), (5, 5), (1, 5)]
    for mistake in ([256, 100], [8], [4, 8], [4, 4], [4, 0]):
        with pytest.raises(UserError):
            stages(mistake)
    for start, end, substeps in ((100, 3, 2), (256, 1, 1), (4, 4, 2), (4, 0, 2), (6, 1, 4)):
        with pytest.raises(UserError):
            halvings(start, end, substeps)


def test_counts_of_numpy_are_whole_numbers() -> None:
    links = stages([np.int64(8), np.int32(4), 1])  # pyright: ignore[reportArgumentType]
    assert [(link.steps, link.substeps) for link in links] == [(4, 2), (1, 4)]
    assert all(type(number) is int for link in links for number in (link.steps, link.substeps))
    for mistake in ([8, 4.0], [np.float64(8), 4], [True, 1], "84"):
        with pytest.raises(UserError, match="chain"):
            stages(mistake)  # pyright: ignore[reportArgumentType]
