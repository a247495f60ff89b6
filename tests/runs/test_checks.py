"""The precision that a run records and keeps, and the notice where bf16 is emulated."""

import json
from pathlib import Path

import pytest
import yaml

from support.commands import call

pytestmark = pytest.mark.slow


AUTO = ("--set", "teacher.precision=auto", "--set", "distill.precision=auto", "--set", "evaluate.precision=auto")


SHORT = ("--set", "teacher.updates=2", "--set", "distill.chain=[8, 4]", "--set", "evaluate.samples=16")


def test_the_choice_is_recorded_and_kept_elsewhere(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device: 0.1)
    monkeypatch.setattr("progdist.runs.checks.bf16_speedup", lambda device: 0.1)
    arguments = ("run", tiny_recipe, "--out", tmp_path / "run", *SHORT, *AUTO)
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "precision: float32 (bf16 is 10 times slower here)" in result.output
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [recipe[part]["precision"] for part in ("teacher", "distill", "evaluate")] == ["float32"] * 3
    description = json.loads((tmp_path / "run" / "student-0004" / "progdist.json").read_text())
    assert description["training"]["precision"] == "float32"
    monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device: 3.0)
    again = call(*arguments)
    assert again.exit_code == 0, again.output
    expected = "teacher and distill and evaluate: float32, as the run was begun; here bf16 is faster"
    assert expected in " ".join(again.output.split())
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == recipe


def test_bf16_where_it_is_emulated_is_one_line(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device: 0.1)
    result = call("run", tiny_recipe, "--out", tmp_path / "run", *SHORT, "--set", "distill.precision=bf16")
    assert result.exit_code == 0, result.output
    assert " ".join(result.output.split()).count("10.0 times as fast in float32") == 1
