"""Random numbers by position: no two rows, updates, stages or seeds share a generator."""

from itertools import product

import torch

from progdist._utils.random import position_seed, seed_generators, seeds


def test_no_two_rows_of_a_batch_share_a_generator() -> None:
    """All of a seed counts: torch's CPU generator takes 32 bits of it."""
    found = seeds(range(2**16), 0, 1, 16)
    assert len(set(found)) == 2**16
    assert max(found) < 2**32
    assert seeds([7, 3], 0, 1, 16) == [found[7], found[3]]
    assert seeds([7], 0, 1, 17) != [found[7]]
    first = [torch.randn(2, generator=torch.Generator().manual_seed(seed)).tolist() for seed in found[:500]]
    assert len(set(map(tuple, first))) == 500


def test_every_position_has_a_seed_of_its_own() -> None:
    positions = list(product(range(20), range(20), range(20)))
    assert len({position_seed(*position) for position in positions}) == len(positions)


def test_a_device_is_seeded_as_torch_seeds_all() -> None:
    torch.manual_seed(2**63 + 5)
    expected = torch.randn(3)
    seed_generators(2**63 + 5, torch.device("cpu"))
    assert torch.equal(torch.randn(3), expected)
