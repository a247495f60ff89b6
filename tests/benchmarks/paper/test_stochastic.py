"""Stochastic sampling of a finished run."""

import shutil
from pathlib import Path

import pytest
from typer.testing import Result

import stochastic
from support.commands import call_in, read_records, succeeds_in

pytestmark = pytest.mark.slow


def test_stochastic_sampling_of_a_run(finished: tuple[Path, Result], tmp_path: Path) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    succeeds_in(stochastic.app, run, "--levels", 3, "--most", 4)
    records = read_records(run / "stochastic", "results")
    levels = [r["level"] for r in records if (r["model"], r["steps"], r["method"]) == ("distilled", 2, "ancestral")]
    assert levels == [0.0, 0.5, 1.0]
    evaluations = read_records(run, "evaluations")
    for record in records:
        if record["method"] == "ddim":  # the same noise as the run's own measurement
            model = {"undistilled": "teacher", "distilled": "student"}[record["model"]]
            same = next(e for e in evaluations if (e["model"], e["steps"]) == (model, record["steps"]))
            assert record["frechet"] == pytest.approx(same["quality"][0]["frechet"], rel=1e-6)
    assert len({r["frechet"] for r in records if r["steps"] == 4 and r["model"] == "undistilled"}) == 5


def test_stochastic_needs_a_finished_run(tmp_path: Path) -> None:
    result = call_in(stochastic.app, tmp_path)
    assert result.exit_code == 2
    assert "holds no finished run" in result.stderr
