"""The stopping rule, on losses whose end is known, and within a run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from progdist.cli.app import app
from progdist.cli.progress import Terminal
from progdist.training.callbacks import Progress
from progdist.training.early_stopping import EarlyStopping

pytestmark = pytest.mark.slow


def first_stop(rule: EarlyStopping, losses: list[float]) -> int | None:
    return next((count for count in range(1, len(losses) + 1) if rule.reached(losses[:count])), None)


def test_a_geometric_loss_stops_where_its_ratio_says() -> None:
    """L_j = q^j improves by 1 - q^w over a window, always: it stops at once or never."""
    losses = [0.9**j for j in range(50)]
    assert first_stop(EarlyStopping(1, 3, 0.27), losses) is None  # 1 - 0.9^3 = 0.271
    assert first_stop(EarlyStopping(1, 3, 0.272), losses) == 6


def test_a_loss_with_a_floor_stops_when_the_rest_is_small() -> None:
    """L_j = 1 + q^j: over one measurement it gains q^(j-1) (1 - q) of 1 + q^(j-1), known in closed form."""
    q, fraction = 0.5, 0.01
    expected = next(j for j in range(1, 99) if q ** (j - 1) * (1 - q) < fraction * (1 + q ** (j - 1)))
    assert first_stop(EarlyStopping(1, 1, fraction), [1 + q**j for j in range(30)]) == expected + 1


@pytest.fixture
def words(tiny_recipe: Path) -> list[str]:
    """The command of a run with the rule, but for its folder."""
    rule = {"every": 2, "window": 2, "fraction": 0.9, "held_out": 64}
    plan = {"updates": 40, "lr_scheduler": "constant", "learning_rate": 1e-3, "end": 2}
    settings = [f"distill.{key}={value}" for key, value in plan.items()]
    settings += [f"distill.stop.{key}={value}" for key, value in rule.items()]
    return ["run", str(tiny_recipe), *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture
def ruled(tmp_path: Path, words: list[str]) -> Path:
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "ruled")])
    assert result.exit_code == 0, result.output
    assert "converged after 8 updates" in result.output  # 90 % in two windows is more than any stage gains
    return tmp_path / "ruled"


def test_a_stage_ends_by_the_rule_and_says_so(ruled: Path) -> None:
    told = [json.loads(line) for line in (ruled / "metrics.jsonl").read_text().splitlines()]
    stage = [record for record in told if record["model"] == "student-0004" and "held_out_loss" in record]
    assert [record["update"] for record in stage] == [2, 4, 6, 8]
    losses = [record["held_out_loss"] for record in stage]
    assert stage[-1]["decision"] == "converged"
    assert stage[-1]["average"] == pytest.approx(sum(losses[2:]) / 2)
    assert stage[-1]["average_before"] == pytest.approx(sum(losses[:2]) / 2)
    assert json.loads((ruled / "student-0004" / "progdist.json").read_text())["training"]["updates"] == 8
    assert (ruled / "report.html").is_file()


def test_an_interrupted_stage_comes_to_the_same_decision(
    ruled: Path, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Terminal, progress: Progress) -> None:
        if self.title == "student-0004" and progress.update == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "progress", interrupt)
        assert CliRunner().invoke(app, [*words, "--out", str(tmp_path / "again")]).exit_code == 130
    assert CliRunner().invoke(app, [*words, "--out", str(tmp_path / "again")]).exit_code == 0
    assert (ruled / "metrics.jsonl").read_text() == (tmp_path / "again" / "metrics.jsonl").read_text()


def test_the_cap_holds(tmp_path: Path, tiny_recipe: Path) -> None:
    words = ["run", str(tiny_recipe), "--out", str(tmp_path / "r"), "--set", "distill.stop.every=2"]
    result = CliRunner().invoke(app, [*words, "--set", "distill.stop.held_out=64"])
    assert result.exit_code == 0, result.output
    assert "student-0001: the cap of 3 updates ends it" in result.output


def test_too_few_images_to_hold_any_out(tmp_path: Path, tiny_recipe: Path) -> None:
    words = ["run", str(tiny_recipe), "--out", str(tmp_path / "r"), "--set", "distill.stop.held_out=1797"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "1797 cannot be held out" in result.stderr
