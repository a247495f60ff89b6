"""The recipe proposed for a given teacher: its chain, and the training of stage 0."""

from itertools import pairwise

import pytest

from progdist import UserError
from progdist.recipes.from_teacher import Request, divisor_chain, recipe_for_teacher
from progdist.teachers.open import open_teacher
from support.stock import SaveStock


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


def test_stage_0_has_its_own_budget_and_schedule(stock: SaveStock) -> None:
    """Four times the updates, warmed up over 100, linear to 0; a student's rate begins at its highest."""
    place = str(stock())
    recipe = recipe_for_teacher(open_teacher(place), Request(place, "digits", "a", steps=4, updates=500))
    stage_0, student = recipe.plan().conversion, recipe.student_config(recipe.distill.links()[0].steps)
    assert (stage_0.updates, student.updates) == (2000, 500)
    rates = [stage_0.learning_rate_at(update) for update in (0, 99, 1000, 1999)]
    assert rates == pytest.approx([5e-4 * factor for factor in (0.01, 1 - 99 / 2000, 0.5, 1 / 2000)])
    assert student.learning_rate_at(0) == pytest.approx(5e-4)
    assert (stage_0.batch, student.batch) == (64, 64)
    request = Request(place, "digits", "a", steps=4, updates=500, conversion_updates=3000)
    longer = recipe_for_teacher(open_teacher(place), request)
    assert longer.plan().conversion.updates == 3000
