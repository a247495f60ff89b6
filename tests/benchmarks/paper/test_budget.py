"""Quality by the number of updates."""

from pathlib import Path

import pytest

import budget
from progdist.recipes.files import read_recipe
from support.commands import call_in, read_records, refused, succeeds_in


def test_a_budget_multiplies_every_stage(short_recipe: Path) -> None:
    recipe = read_recipe(str(short_recipe), ["distill.start=16", "distill.stages.1.updates=30"])
    changed = budget._variant(recipe, 4, 0.5)
    assert changed.distill.counts() == [16, 4, 1]
    configs = [changed.distill.train_config(link) for link in changed.distill.links()]
    assert [config.updates for config in configs] == [2, 15]  # 0.5 * (3, 30), even
    assert [link.substeps for link in changed.distill.links()] == [4, 4]
    assert changed.teacher == recipe.teacher


@pytest.mark.slow
def test_every_budget_is_measured(short_recipe: Path, tmp_path: Path) -> None:
    settings = ("--set", "distill.start=4", "--times", 1, "--times", 2)
    succeeds_in(budget.app, short_recipe, "--out", tmp_path, *settings)
    records = read_records(tmp_path, "results")
    by_two = [r for r in records if r["divisor"] == 2 and r["factor"] == 2]
    assert [(r["steps"], r["updates"]) for r in by_two] == [(2, 6), (1, 12)]
    by_four = [r for r in records if r["divisor"] == 4 and r["factor"] == 1]
    assert [(r["steps"], r["updates"]) for r in by_four] == [(1, 3)]
    assert (tmp_path / "plot.png").is_file()
    teachers = {path.read_bytes() for path in tmp_path.rglob("teacher/unet/diffusion_pytorch_model.safetensors")}
    assert len(teachers) == 1


def test_a_budget_that_no_chain_fits(short_recipe: Path, tmp_path: Path) -> None:
    refused(call_in(budget.app, short_recipe, "--divide-by", "three"), "Invalid value for '--divide-by'", "--help")
    result = call_in(budget.app, short_recipe, "--out", tmp_path / "b", "--divide-by", 3)
    assert result.exit_code == 2
    assert "dividing 8 steps by 3" in result.stderr
    assert not (tmp_path / "b").exists()
