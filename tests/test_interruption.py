"""A run that is killed, stopped or started twice loses nothing; damaged checkpoints are passed over."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from conftest import TINY
from progdist._utils.signals import SHUTDOWN, Interrupted, interruptible
from progdist.cli.app import app, start
from progdist.training.checkpoint import Checkpoint, Checkpoints

pytestmark = pytest.mark.slow

MODELS = ("teacher", "student-0004", "student-0002")
KILLS = int(os.environ.get("KILLS", "4"))
"""Kill points of the test; `make torture` tries more."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough to be killed in: some seconds of updates, a checkpoint every few."""
    path = tmp_path_factory.mktemp("recipe") / "slow.yaml"
    text = TINY.replace("updates: 12", "updates: 50").replace("end: 1, updates: 3", "end: 2, updates: 25")
    text = text.replace("checkpoint_every: 4", "checkpoint_every: 5").replace(
        "checkpoint_every: 2", "checkpoint_every: 4"
    )
    text = text.replace("multipliers: [1, 2]", "multipliers: [1]")
    path.write_text(text.replace("samples: 96, features: [digits, pixels]", "samples: 16, features: [digits]"))
    return path


PREPARED = multiprocessing.get_context("forkserver")
"""Starts processes from one that has imported everything, so that runs begin at once."""
PREPARED.set_forkserver_preload(
    [
        "progdist.cli.app",
        "progdist.runs.run",
        "progdist.cli.progress",
        "progdist.runs.report",
        "sklearn.datasets",
        "scipy.linalg",
    ]
)


@dataclass
class Started:
    """A run in a process of its own."""

    process: BaseProcess
    said: Path

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def finish(self) -> tuple[int | None, str]:
        """Exit code, and what was said on standard error."""
        self.process.join(1800)
        assert self.process.exitcode is not None, "the run hangs"
        return self.process.exitcode, self.said.read_text()


def run_recipe(words: list[str], said: Path) -> None:
    for stream, number in ((said.with_suffix(".out"), 1), (said, 2)):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    start(words)


def begin(recipe: Path, out: Path) -> Started:
    said = out.with_suffix(f".{random.random()}.err")
    process = PREPARED.Process(target=run_recipe, args=(["run", str(recipe), "--out", str(out)], said))
    process.start()
    return Started(process, said)


def updates(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def wait_for(process: "Started | subprocess.Popen[str]", ready: Callable[[], bool]) -> None:
    while not ready() and process.poll() is None:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    code, problem = begin(recipe, out).finish()
    assert code == 0, problem
    return out


def equal(a: Path, b: Path) -> bool:
    """Bit for bit: every model's weights, every metric."""
    weights = [f"{name}/unet/diffusion_pytorch_model.safetensors" for name in MODELS]
    same = all((a / name).read_bytes() == (b / name).read_bytes() for name in weights)
    return same and (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_update_and_says_how_to_go_on(
    recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    process = begin(recipe, out)
    wait_for(process, lambda: updates(out) > 15)
    process.send_signal(number)
    ended, said = process.finish()
    assert ended == code, said
    assert f"stopped by {number.name}" in said
    assert said.count("\n") == 1
    kept = max(int(path.stem) for path in (out / "checkpoints" / "teacher").glob("*.json"))
    assert kept == updates(out)  # no update is lost
    assert begin(recipe, out).finish()[0] == 0
    assert equal(out, whole)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_run_killed_anywhere_ends_the_same(recipe: Path, whole: Path, tmp_path: Path, seed: int) -> None:
    out, draw = tmp_path / "run", random.Random(seed)
    process = begin(recipe, out)
    wanted = draw.randrange(1, updates(whole))
    wait_for(process, lambda: updates(out) >= wanted)
    time.sleep(draw.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.finish()
    code, said = begin(recipe, out).finish()
    assert code == 0, said
    assert equal(out, whole)


def test_a_second_process_is_refused_and_a_dead_ones_hold_is_gone(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = begin(recipe, out)
    wait_for(process, lambda: updates(out) > 2)
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(out)])
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert result.exit_code == 2
    assert f"is in use by process {process.pid}" in result.stderr.replace("\n", " ")
    assert CliRunner().invoke(app, ["run", str(recipe), "--out", str(out)]).exit_code == 0


def test_fresh_starts_over_and_deletes_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    words = ["run", str(tiny_recipe), "--out", str(tmp_path / "run"), "--set", "distill.end=4"]
    assert CliRunner().invoke(app, words).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")}
    assert CliRunner().invoke(app, [*words, "--fresh", "--set", "seed=5"]).exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "run.old-1").glob("*.jsonl")} == before
    assert json.loads((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[0])["steps"] == 8


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [damage, lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])],
    ids=["a bit", "gone", "short"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_damaged_checkpoint_is_passed_over_and_said(
    tmp_path: Path, harm: Callable[[Path], None], suffix: str
) -> None:
    checkpoints, said = Checkpoints(tmp_path), []
    for update in (5, 10):
        checkpoints.save(Checkpoint(update, {"w": torch.full((50,), float(update))}, {"seconds": 1.5}))
    harm(tmp_path / f"00000010{suffix}")
    latest = checkpoints.latest(said.append)
    assert latest is not None
    if latest.update == 10:  # the JSON's flipped bit made another whole file of the same numbers
        assert suffix == ".json"
    else:
        assert torch.equal(latest.tensors["w"], torch.full((50,), 5.0))
        assert latest.numbers == {"seconds": 1.5}
        gone = suffix == ".json" and not (tmp_path / "00000010.json").exists()
        assert gone or (len(said) == 1 and "00000010" in said[0])


def test_a_second_signal_stops_at_once() -> None:
    with interruptible():
        with pytest.raises(Interrupted), SHUTDOWN.deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            assert SHUTDOWN.requested == signal.SIGTERM
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):  # nothing is under way: the first one does
            SHUTDOWN.requested = None
            signal.raise_signal(signal.SIGINT)
