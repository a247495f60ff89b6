"""Several processes at one run: the same weights and images as one, and any number of them goes on from a crash."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from test_interruption import updates, wait_for

pytestmark = pytest.mark.slow

MODELS = ("teacher", "student-0004")
RECIPE = """
name: shared
data: {source: digits}
network: {width: 8, multipliers: [1, 2], groups: 4}
teacher: {updates: 50, batch: 16, learning_rate: 1.0e-3, warmup: 2, ema: 0.9, checkpoint_every: 10, precision: float32}
distill: {start: 8, end: 4, updates: 50, batch: 16, learning_rate: 1.0e-3, checkpoint_every: 10, precision: float32}
evaluate: {samples: 96, batch: 16, features: [digits], resamples: 4, precision: float32}
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no", "--num_processes")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "shared.yaml"
    path.write_text(RECIPE)
    return path


def begin(launcher: tuple[str, ...], recipe: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    """The run under a launcher and its options; none for one process alone."""
    words = [sys.executable, *launcher, "-m", "progdist", "run", str(recipe), "--out", str(out), *more]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        said, complained = process.communicate(timeout=1800)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    return process.returncode, said, complained


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    code, _, complained = finish(begin((), recipe, out))
    assert code == 0, complained
    return out


def weights(out: Path, name: str) -> torch.Tensor:
    tensors = load_file(out / name / "unet" / "diffusion_pytorch_model.safetensors")
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest, relative to the largest weight."""
    return float((a - b).abs().max() / a.abs().max())


def records(out: Path, kind: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / f"{kind}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("launcher", [(*ACCELERATE, "2"), (*TORCHRUN, "4")], ids=["accelerate 2", "torchrun 4"])
def test_more_processes_make_the_same_run(launcher: tuple[str, ...], recipe: Path, alone: Path, tmp_path: Path) -> None:
    code, said, complained = finish(begin(launcher, recipe, tmp_path / "run"))
    assert code == 0, complained
    assert said.count("Report:") == 1  # only the first process speaks
    for name in MODELS:
        assert difference(weights(alone, name), weights(tmp_path / "run", name)) < 1e-5
    images, same = (load_file(out / "samples" / "reference.safetensors")["images"] for out in (alone, tmp_path / "run"))
    torch.testing.assert_close(images, same, rtol=0, atol=1e-3)
    one, many = (records(out, "metrics") for out in (alone, tmp_path / "run"))
    assert [(r["model"], r["update"]) for r in one] == [(r["model"], r["update"]) for r in many]
    assert [r["loss"] for r in many] == pytest.approx([r["loss"] for r in one], rel=1e-3)


def test_a_crash_ends_all_and_another_number_goes_on(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """Two processes of which one is killed, then one that is asked to stop, then four to the end."""
    out = tmp_path / "run"
    process = begin((*TORCHRUN, "2"), recipe, out)
    wait_for(process, lambda: updates(out) > 25)
    psutil.Process(process.pid).children()[-1].kill()
    code, _, complained = finish(process)
    assert code != 0
    assert "Signal 9 (SIGKILL)" in complained
    kept = max(int(path.stem) for path in (out / "checkpoints" / "teacher").glob("*.json"))
    assert kept >= 20
    process = begin((), recipe, out)
    wait_for(process, lambda: updates(out) > 75)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    code, _, complained = finish(begin((*TORCHRUN, "4"), recipe, out))
    assert code == 0, complained
    for name in MODELS:
        assert difference(weights(alone, name), weights(out, name)) < 1e-5
    assert len(records(out, "metrics")) == len(records(alone, "metrics"))
    ours, theirs = ([r["quality"][0]["frechet"] for r in records(at, "evaluations")] for at in (out, alone))  # type: ignore[index]
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_a_signal_to_the_launcher_keeps_the_update(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = begin((*TORCHRUN, "2"), recipe, out)
    wait_for(process, lambda: updates(out) > 13)
    process.send_signal(signal.SIGTERM)
    _, _, complained = finish(process)
    assert complained.count("progdist: stopped by SIGTERM") == 1
    kept = max(int(path.stem) for path in (out / "checkpoints" / "teacher").glob("*.json"))
    assert kept == updates(out)


def test_a_mistake_is_told_once(recipe: Path, tmp_path: Path) -> None:
    words = [sys.executable, *TORCHRUN, "2", "-m", "progdist", "run", str(recipe), "--set", "data.source=nothing"]
    told = subprocess.run([*words, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=1200)
    assert told.returncode != 0
    assert told.stderr.count("progdist: data source 'nothing' is unknown") == 1
    assert "process 1: " not in told.stderr


VIEWS = """
import sys
from pathlib import Path
import torch
from progdist._utils.errors import UserError
from progdist.training.checkpoint import Checkpoint, Checkpoints
from progdist.training.distributed import load_agreed_checkpoint, make_accelerator

accelerator = make_accelerator()
seen = [int(word) for word in sys.argv[2 + accelerator.process_index].split(",")]
checkpoints = Checkpoints(Path(sys.argv[1]) / str(accelerator.process_index), keep=9)
for update in seen:
    checkpoints.save(Checkpoint(update, {"a": torch.ones(1)}, {}))
try:
    told = load_agreed_checkpoint(checkpoints, accelerator)
    print(f"process {accelerator.process_index} goes on from {told.update if told else None}", flush=True)
except UserError as error:
    print(f"process {accelerator.process_index} stops: {error}", flush=True)
"""


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("4,8", "4,8,12", ["process 0 goes on from 8", "process 1 goes on from 8"]),
        ("4,8", "4", ["process 0 stops: process 1: ", "process 1 stops: process 1: "]),
    ],
)
def test_the_first_process_chooses_the_checkpoint(tmp_path: Path, first: str, second: str, says: list[str]) -> None:
    (tmp_path / "views.py").write_text(VIEWS)
    words = [sys.executable, *TORCHRUN, "2", str(tmp_path / "views.py"), str(tmp_path), first, second]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    told = subprocess.run(words, capture_output=True, text=True, env=alone, timeout=1200)
    assert told.returncode == 0, told.stderr
    for words in says:
        assert words in told.stdout


def test_sharded_training_is_the_same_and_what_it_writes_is_whole(recipe: Path, tmp_path: Path) -> None:
    """Two processes with half of every weight each, stopped; one with the whole goes on from their checkpoint."""
    settings = ("--set", "teacher.ema=0", "--set", "teacher.checkpoint_every=5")
    code, _, complained = finish(begin((), recipe, tmp_path / "alone", *settings))
    assert code == 0, complained
    out = tmp_path / "run"
    process = begin((*TORCHRUN, "2"), recipe, out, *settings, "--shard")
    wait_for(process, lambda: updates(out) > 75)
    process.send_signal(signal.SIGTERM)
    _, _, complained = finish(process)
    assert "stopped by SIGTERM" in complained
    assert difference(weights(tmp_path / "alone", "teacher"), weights(out, "teacher")) < 1e-5
    assert list((out / "checkpoints" / "student-0004").glob("*.json"))
    code, _, complained = finish(begin((), recipe, out, *settings))
    assert code == 0, complained
    assert difference(weights(tmp_path / "alone", "student-0004"), weights(out, "student-0004")) < 1e-5


def test_sharding_takes_several_processes(recipe: Path, tmp_path: Path) -> None:
    code, _, complained = finish(begin((), recipe, tmp_path / "run", "--shard"))
    assert code == 2
    assert "sharding needs several processes" in complained
