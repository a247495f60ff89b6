"""The stopping rule within a run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from progdist.cli.app import app
from progdist.cli.progress import Terminal
from progdist.training.callbacks import Progress

pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(tiny_recipe: Path) -> list[str]:
    """The command of a run with the rule, but for its folder."""
    rule = {"every": 2, "window": 2, "fraction": 0.9, "held_out": 64}
    settings = {"updates": 40, "lr_scheduler": "constant", "learning_rate": 1e-3, "end": 2}
    settings = [f"distill.{key}={value}" for key, value in settings.items()]
    settings += [f"distill.stop.{key}={value}" for key, value in rule.items()]
    return ["run", str(tiny_recipe), *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture
def stopped(tmp_path: Path, arguments: list[str]) -> Path:
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "ruled")])
    assert result.exit_code == 0, result.output
    assert "converged after 8 updates" in result.output  # 90 % in two windows is more than any stage gains
    return tmp_path / "ruled"


def test_a_stage_ends_by_the_rule_and_says_so(stopped: Path) -> None:
    records = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    stage = [record for record in records if record["model"] == "student-0004" and "held_out_loss" in record]
    assert [record["update"] for record in stage] == [2, 4, 6, 8]
    losses = [record["held_out_loss"] for record in stage]
    assert stage[-1]["decision"] == "converged"
    assert stage[-1]["average"] == pytest.approx(sum(losses[2:]) / 2)
    assert stage[-1]["average_before"] == pytest.approx(sum(losses[:2]) / 2)
    assert json.loads((stopped / "student-0004" / "progdist.json").read_text())["training"]["updates"] == 8
    assert (stopped / "report.html").is_file()


def test_an_interrupted_stage_comes_to_the_same_decision(
    stopped: Path, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Terminal, progress: Progress) -> None:
        if self.title == "student-0004" and progress.update == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "progress", interrupt)
        assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again")]).exit_code == 130
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again")]).exit_code == 0
    assert (stopped / "metrics.jsonl").read_text() == (tmp_path / "again" / "metrics.jsonl").read_text()


def test_the_cap_holds(tmp_path: Path, tiny_recipe: Path) -> None:
    arguments = ["run", str(tiny_recipe), "--out", str(tmp_path / "r"), "--set", "distill.stop.every=2"]
    result = CliRunner().invoke(app, [*arguments, "--set", "distill.stop.held_out=64"])
    assert result.exit_code == 0, result.output
    assert "student-0001: stops at its cap of 3 updates" in result.output


def test_too_few_images_to_hold_any_out(tmp_path: Path, tiny_recipe: Path) -> None:
    arguments = ["run", str(tiny_recipe), "--out", str(tmp_path / "r"), "--set", "distill.stop.held_out=1797"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "cannot hold out 1797" in result.stderr
