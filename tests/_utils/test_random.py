"""Random numbers by position: no two rows, updates, stages or seeds share a generator."""

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from progdist._utils.random import SeededWhereDrawn, position_seed, seeded, seeds


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


def test_work_that_draws_only_now_and_then_is_seeded_where_it_draws() -> None:
    """Whatever call draws first, each result is that of its own seed, and the program's numbers go on as before."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for order in ([0, 1, 2, 3, 4, 5], [1, 0, 3], [4, 2, 5], [0, 2, 4, 0, 3]):
        work = SeededWhereDrawn()
        for number in order:
            got = work(lambda number=number: torch.randn(3) if number % 2 else torch.zeros(3), lambda n=number: n)
            own = torch.Generator().manual_seed(number)
            assert torch.equal(got, torch.randn(3, generator=own) if number % 2 else torch.zeros(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_is_seeded_as_torch_seeds_all() -> None:
    torch.manual_seed(2**63 + 5)
    expected = torch.randn(3)
    with seeded(2**63 + 5, torch.device("cpu")):
        assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("draw", [lambda: torch.randn(3), lambda: nn.functional.dropout(torch.ones(64))])
def test_what_draws_is_seeded_and_the_programs_generator_is_as_before(draw: Callable[[], Tensor]) -> None:
    before, work = torch.get_rng_state(), SeededWhereDrawn()
    results = [work(draw, partial(int, seed)) for seed in (1, 2, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    for seed, result in zip((1, 2, 1), results, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(result, draw())


@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_attention_draws_only_if_it_drops(dropped: float) -> None:
    """torch marks it as drawing in any case."""
    work, x = SeededWhereDrawn(), torch.ones(1, 2, 4, 8)
    work(lambda: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=dropped), partial(int, 1))
    assert work.draws == (dropped > 0)


def test_what_does_not_draw_leaves_the_generator_alone() -> None:
    """Also while another thread draws: its numbers are those of its own seed, in order."""
    own, work, calls = torch.Generator(), SeededWhereDrawn(), []

    def without() -> Tensor:
        calls.append(1)
        return torch.ones(3).normal_(generator=own) @ torch.ones(3)

    torch.manual_seed(7)
    expected = [float(torch.randn(())) for _ in range(4)]
    torch.manual_seed(7)
    seen = []
    for seed in range(4):
        seen.append(float(torch.randn(())))
        work(without, lambda seed=seed: seed)
    assert (seen, len(calls), work.draws) == (expected, 4, False)
