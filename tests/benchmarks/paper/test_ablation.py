"""The ablation on a tiny recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

import ablation as script
from progdist.recipes.files import read_recipe
from support.commands import read_records, succeeds_in

pytestmark = pytest.mark.slow


COMMAND = ("--seeds", 2, "--set", "teacher.updates=2")


@pytest.fixture(scope="module")
def ablation(short_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ablation")
    succeeds_in(script.app, short_recipe, "--out", out, *COMMAND)
    return out


def test_the_ablation_is_the_papers_grid(ablation: Path, short_recipe: Path) -> None:
    records = read_records(ablation, "results")
    assert len({(r["output"], r["weighting"], r["seed"]) for r in records}) == len(records) == 4 * 3 * 2
    assert all(record["ancestral"] > 0 and record["ddim"] > 0 for record in records)
    assert (ablation / "table.md").read_text().count("±") == 2 * 12
    assert (ablation / "plot.png").stat().st_size > 10_000
    succeeds_in(script.app, short_recipe, "--out", ablation, *COMMAND)
    assert read_records(ablation, "results") == records


def test_a_cell_changes_output_weighting_and_seed_alone(ablation: Path, short_recipe: Path) -> None:
    """The folder of each cell holds the recipe with that output, weighting and seed, and all else as it was."""
    base = read_recipe(str(short_recipe), ["teacher.updates=2"])
    cell = read_recipe(str(ablation / "teachers" / "x_eps-snr-1" / "recipe.yaml"))
    teacher = replace(base.teacher, weighting="snr")
    assert cell == base.model_copy(update={"parameterization": "x_eps", "teacher": teacher, "seed": base.seed + 1})


def test_what_diverges_is_a_result(short_recipe: Path, tmp_path: Path) -> None:
    settings = ("--set", "teacher.learning_rate=1e30", "--set", "teacher.max_skipped_updates=0")
    succeeds_in(script.app, short_recipe, "--seeds", 1, "--out", tmp_path, *settings)
    assert all("not" in record["diverged"] for record in read_records(tmp_path, "results"))
    assert "1 of 1 diverged" in (tmp_path / "table.md").read_text()
