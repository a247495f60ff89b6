"""The recipe proposed for a given teacher: its chain, and the training of stage 0."""

from itertools import pairwise
from pathlib import Path

import pytest
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from progdist import UserError
from progdist.data.sources import open_source
from progdist.data.tables import Columns
from progdist.recipes.files import override
from progdist.recipes.from_teacher import Request, divisor_chain, frame, recipe_for_teacher
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


@pytest.mark.parametrize("odd", [0, 5])
def test_images_of_another_kind_are_brought_to_the_teachers_shape_wherever_they_sort(
    stock: SaveStock, tmp_path: Path, odd: int
) -> None:
    """One in colour, or one of another size, among images of the teacher's own shape."""
    teacher = open_teacher(str(stock()))
    for other in (Image.new("RGB", (8, 8)), Image.new("L", (12, 9))):
        for number in range(8):
            (other if number == odd else Image.new("L", (8, 8))).save(tmp_path / f"{number}.png")
        data = frame(teacher, f"folder:{tmp_path}", Columns())
        images = open_source(data.source, data.transform())
        assert [tuple(image.shape) for image, _ in images] == [(1, 8, 8)] * 8
    request = Request("a", f"folder:{tmp_path}", "a", steps=4, background="black")
    assert recipe_for_teacher(teacher, request).data.background == "black"


def test_a_budget_of_stage_0_requires_one(stock: SaveStock) -> None:
    """A teacher of v on a schedule that ends in pure noise needs none."""
    v = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    place = str(stock(v))
    recipe_for_teacher(open_teacher(place), Request(place, "digits", "a", steps=4))
    with pytest.raises(UserError, match="--conversion-updates applies only to a teacher that stage 0 converts"):
        recipe_for_teacher(open_teacher(place), Request(place, "digits", "a", steps=4, conversion_updates=9))


def test_an_option_of_all_stages_requires_a_stage_that_has_none_of_its_own(stock: SaveStock) -> None:
    """`distill` gives the last two stages their own updates: with two there is none that takes those of all."""
    place = str(stock())
    recipe = recipe_for_teacher(open_teacher(place), Request(place, "digits", "a", steps=2, start=8, updates=3))
    with pytest.raises(UserError, match=r"distill.updates has no effect, because .* set distill.stages.4.updates"):
        override(recipe, ["distill.updates=9"])
    assert override(recipe, ["distill.batch=9"]).distill.batch == 9
    longer = recipe_for_teacher(open_teacher(place), Request(place, "digits", "a", steps=1, start=8, updates=3))
    assert override(longer, ["distill.updates=9"]).distill.updates == 9
