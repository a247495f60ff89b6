"""What a run may continue under, and what a recipe needs of its data."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from progdist.recipes.files import validated, write_recipe
from progdist.recipes.recipe import Recipe
from support.commands import call


def test_a_run_continues_under_what_changes_only_the_rest(tiny: Callable[..., Recipe]) -> None:
    old, slower = tiny(), tiny(**{"distill.learning_rate": 1e-4})
    assert slower.continues(old, {"teacher"})
    assert not slower.continues(old, {"teacher", "student-0004"})
    last = tiny(**{"distill.stages": {1: {"updates": 9}}})
    assert last.continues(old, {"teacher", "student-0004", "student-0002"})
    assert not last.continues(old, {"teacher", "student-0004", "student-0002", "student-0001"})
    assert tiny(**{"teacher.updates": 99}).continues(old, set())
    assert not tiny(**{"teacher.updates": 99}).continues(old, {"teacher"})
    assert not tiny(**{"distill.weighting": "constant"}).continues(old, {"teacher", "student-0004"})
    for change in ({"seed": 1}, {"network.width": 16}, {"distill.start": 16}, {"evaluate.samples": 50}):
        assert not tiny(**change).continues(old, set())


@pytest.mark.slow
def test_a_weighting_that_is_nothing_at_one_step_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ("--set", "noise.kind=rectified_flow", "--set", "parameterization=velocity")
    result = call("run", tiny_recipe, "--out", tmp_path / "run", *settings, "--set", "distill.weighting=snr")
    assert result.exit_code == 2, result.output
    assert "the weighting is 0 at t = 1" in result.stderr


def test_infinite_bounds_are_written_and_read(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(**{"noise.log_snr_max": float("inf"), "noise.log_snr_min": float("-inf")})
    assert validated(yaml.safe_load(write_recipe(recipe)), [], "test") == recipe
    assert recipe.with_precisions({"distill": "bf16"}).noise == recipe.noise


def test_stage_0_takes_four_times_the_updates_that_a_recipe_says(tiny: Callable[..., Recipe]) -> None:
    for updates in (12, 12.0, "12"):
        assert tiny(**{"distill.updates": updates}).conversion.updates == 48
