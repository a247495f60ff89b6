"""The noise that stochastic samplers add is a function of seed, sample and step, whatever the batch or the process."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from progdist import Denoiser
from progdist._utils.random import RowGenerator, generator
from progdist.diffusion.sampler import SAMPLERS, ancestral, sample, standard_normal
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.models.conditioning import Classes
from progdist.models.model import Model
from progdist.recipes.files import read_recipe
from progdist.runs.evaluator import Evaluator
from progdist.runs.run import open_run
from support.commands import SilentCallback
from support.recipe_effects import untrained_of

METHODS = ["ancestral", "overshoot", "consistency"]


def test_rows_and_draws_have_normal_numbers_of_their_own() -> None:
    """100 draws of 200 rows of 50: mean 0, variance 1, and no two rows or draws correlated, each within 5 errors."""
    rows = RowGenerator((3, 1), range(200))
    drawn = torch.stack([standard_normal(torch.empty(200, 50), rows) for _ in range(100)]).double()
    assert abs(float(drawn.mean())) < 5 / drawn.numel() ** 0.5
    assert abs(float(drawn.var()) - 1) < 5 * (2 / drawn.numel()) ** 0.5
    for first, second in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        assert abs(float((first * second).mean())) < 5 / first.numel() ** 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_alone_is_that_of_its_batch(method: str, tiny_model: Callable[..., Denoiser]) -> None:
    model, noise = tiny_model(), torch.randn(5, 1, 8, 8)
    every = sample(model, noise, 4, method=method, generator=RowGenerator((0,), range(5)))
    for row in range(5):
        alone = sample(model, noise[row : row + 1], 4, method=method, generator=RowGenerator((0,), range(row, row + 1)))
        torch.testing.assert_close(alone, every[row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_changes_no_image(method: str, tiny_model: Callable[..., Denoiser]) -> None:
    model = Model(tiny_model(classes=3), (4,), (8,), Classes(("a", "b", "c")))
    options = SamplingOptions(4, 11, None, seed=3, method=method, batch=11)
    whole, other = (generate_images(model, replace(options, seed=seed), print)[0] for seed in (3, 4))
    for batch in (1, 4, 10):
        images = generate_images(model, replace(options, batch=batch), print)[0]
        torch.testing.assert_close(images, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, whole, atol=1e-2)


class Process:
    """One of several processes, which does its share of the batches."""

    device = torch.device("cpu")

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count

    def map_to_main_process(self, work: Callable[[int], Any], count: int) -> dict[int, Any]:
        return {number: work(number) for number in range(self.index, count, self.count)}


@pytest.mark.parametrize("method", [*METHODS, partial(ancestral, gamma=0.3)])
def test_processes_make_the_samples_of_one(method: Any, tmp_path: Path, tiny_recipe: Path) -> None:  # noqa: ANN401
    settings = ["evaluate.samples=48", "evaluate.batch=16", "evaluate.features=[pixels]", "evaluate.precision=float32"]
    recipe = read_recipe(str(tiny_recipe), settings)
    run = open_run(recipe, tmp_path / "run", SilentCallback())
    evaluator, model = run.evaluator, untrained_of(recipe)

    def images(processes: int, batch: int = 16) -> Tensor:
        evaluate = recipe.evaluate.model_copy(update={"batch": batch})
        context = replace(evaluator.context, recipe=recipe.model_copy(update={"evaluate": evaluate}))
        found: dict[int, Any] = {}
        for index in range(processes):
            one = replace(context, distributed=cast(Any, Process(index, processes)))
            found |= cast(dict[int, Any], Evaluator(one, evaluator.metrics).samples(model, 4, method))
        return torch.cat([found[number].images for number in sorted(found)])

    alone = images(1)
    for other in (images(2), images(3), images(1, batch=8)):
        torch.testing.assert_close(other, alone, rtol=1e-4, atol=1e-5)


def test_all_stochastic_samplers_are_tested(tiny_model: Callable[..., Denoiser]) -> None:
    model, noise = tiny_model(), torch.randn(2, 1, 8, 8)
    drawing = [
        name
        for name in SAMPLERS
        if not torch.equal(*(sample(model, noise, 3, method=name, generator=generator(seed)) for seed in (0, 1)))
    ]
    assert sorted(drawing) == sorted(METHODS)
