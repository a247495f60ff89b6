"""A run that is killed, stopped or started twice loses nothing, a discriminator's training least of all."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from progdist.cli.app import app
from support.commands import TINY, refused
from support.processes import count_updates, start_run, wait_for

pytestmark = pytest.mark.slow


MODELS = ("teacher", "student-0004", "student-0002")


KILLS = int(os.environ.get("KILLS", "2"))
"""Kill points of the test; `make torture` tries more."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough to be killed in: some seconds of updates, a checkpoint every few."""
    path = tmp_path_factory.mktemp("recipe") / "slow.yaml"
    text = TINY.replace("updates: 12", "updates: 50").replace(
        "end: 1, updates: 3", "end: 2, method: adversarial, ema: 0.5, updates: 25"
    )
    text = text.replace("checkpoint_every: 4", "checkpoint_every: 5").replace(
        "checkpoint_every: 2", "checkpoint_every: 4"
    )
    text = text.replace("multipliers: [1, 2]", "multipliers: [1]")
    path.write_text(text.replace("samples: 96, features: [digits, pixels]", "samples: 16, features: [digits]"))
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    code, problem = start_run(recipe, out).finish()
    assert code == 0, problem
    return out


def equal(a: Path, b: Path) -> bool:
    """Bit for bit: every model's weights, every metric."""
    weights = [f"{name}/unet/diffusion_pytorch_model.safetensors" for name in MODELS]
    same = all((a / name).read_bytes() == (b / name).read_bytes() for name in weights)
    return same and (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_update_and_says_how_to_continue(
    recipe: Path, uninterrupted: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    process = start_run(recipe, out)
    wait_for(process, lambda: count_updates(out) > 15)
    process.send_signal(number)
    exit_code, errors = process.finish()
    assert exit_code == code, errors
    assert f"stopped by {number.name}" in errors
    assert errors.count("\n") == 1
    latest = max(int(path.stem) for path in (out / "checkpoints" / "teacher").glob("*.json"))
    assert latest == count_updates(out)  # no update is lost
    assert start_run(recipe, out).finish()[0] == 0
    assert equal(out, uninterrupted)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_run_killed_anywhere_ends_the_same(recipe: Path, uninterrupted: Path, tmp_path: Path, seed: int) -> None:
    out, draw = tmp_path / "run", random.Random(seed)
    process = start_run(recipe, out)
    target = draw.randrange(1, count_updates(uninterrupted))
    wait_for(process, lambda: count_updates(out) >= target)
    time.sleep(draw.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.finish()
    code, errors = start_run(recipe, out).finish()
    assert code == 0, errors
    assert equal(out, uninterrupted)


def test_a_second_process_is_refused_and_a_dead_ones_hold_is_gone(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_run(recipe, out)
    wait_for(process, lambda: count_updates(out) > 2)
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(out)])
    begun = (out / "recipe.yaml").read_text()
    for other in (["--set", "distill.learning_rate=1e-5"], ["--fresh"]):
        refused(CliRunner().invoke(app, ["run", str(recipe), "--out", str(out), *other]), "is in use by process")
    assert (out / "recipe.yaml").read_text() == begun
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [out]
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert result.exit_code == 2
    assert f"is in use by process {process.pid}" in result.stderr.replace("\n", " ")
    assert CliRunner().invoke(app, ["run", str(recipe), "--out", str(out)]).exit_code == 0
