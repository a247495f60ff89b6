"""Several processes at one run: the same weights and images as one, and any number of them continues after a crash."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from progdist.data.shards import TensorShards
from support.commands import call, read_records, refused, succeeds
from support.processes import CPU_ENVIRONMENT, count_updates, start_run, wait_for

pytestmark = pytest.mark.slow


MODELS = ("teacher", "student-0004")


RECIPE = """
name: shared
data: {source: digits}
network: {width: 8, multipliers: [1, 2], groups: 4}
teacher: {updates: 20, batch: 16, learning_rate: 1.0e-3, warmup: 2, ema: 0.9, checkpoint_every: 5, precision: float32}
distill: {start: 8, end: 4, updates: 20, batch: 16, learning_rate: 1.0e-3, checkpoint_every: 5, precision: float32}
evaluate: {samples: 48, batch: 16, features: [digits], resamples: 4, precision: float32}
"""


ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no", "--num_processes")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "shared.yaml"
    path.write_text(RECIPE)
    return path


def launch(launcher: tuple[str, ...], recipe: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    """The run under a launcher and its options."""
    arguments = [sys.executable, *launcher, "-m", "progdist", "run", str(recipe), "--out", str(out), *more]
    environment = os.environ | CPU_ENVIRONMENT
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=1800)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    succeeds("run", recipe, "--out", out)
    return out


def weights(out: Path, name: str) -> torch.Tensor:
    tensors = load_file(out / name / "unet" / "diffusion_pytorch_model.safetensors")
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest, relative to the largest weight."""
    return float((a - b).abs().max() / a.abs().max())


def test_more_processes_make_the_same_run(recipe: Path, alone: Path, tmp_path: Path) -> None:
    code, output, errors = finish(launch((*ACCELERATE, "2"), recipe, tmp_path / "run"))
    assert code == 0, errors
    assert output.count("Report:") == 1  # only the first process speaks
    for name in MODELS:
        assert difference(weights(alone, name), weights(tmp_path / "run", name)) < 3e-5
    images, same = (
        TensorShards(out / "samples" / "reference", 48, 16).read(range(48)) for out in (alone, tmp_path / "run")
    )
    torch.testing.assert_close(images, same, rtol=0, atol=1e-3)
    one, many = (read_records(out, "metrics") for out in (alone, tmp_path / "run"))
    assert [(r["model"], r["update"]) for r in one] == [(r["model"], r["update"]) for r in many]
    assert [r["loss"] for r in many] == pytest.approx([r["loss"] for r in one], rel=1e-3)


def test_a_crash_ends_all_and_another_number_continues(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """Two processes of which one is killed, then one to the end."""
    out = tmp_path / "run"
    process = start_run(recipe, out, ranks=2)
    wait_for(process, lambda: count_updates(out) > 12)
    psutil.Process(process.pid).children()[-1].kill()
    code, errors = process.finish()
    assert code != 0
    assert "Signal 9 (SIGKILL)" in errors
    latest = max(int(path.stem) for path in (out / "checkpoints" / "teacher").glob("*.json"))
    assert latest >= 10
    succeeds("run", recipe, "--out", out)
    for name in MODELS:
        assert difference(weights(alone, name), weights(out, name)) < 3e-5
    assert len(read_records(out, "metrics")) == len(read_records(alone, "metrics"))
    ours, theirs = ([r["quality"][0]["frechet"] for r in read_records(at, "evaluations")] for at in (out, alone))
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_a_signal_to_the_launcher_keeps_the_update(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_run(recipe, out, ranks=2)
    wait_for(process, lambda: count_updates(out) > 7)
    process.send_signal(signal.SIGTERM)
    _, errors = process.finish()
    assert errors.count("progdist: stopped by SIGTERM") == 1
    latest = max(int(path.stem) for path in (out / "checkpoints" / "teacher").glob("*.json"))
    assert latest == count_updates(out)


def test_a_mistake_is_reported_once(recipe: Path, tmp_path: Path) -> None:
    code, errors = start_run(recipe, tmp_path / "run", "--set", "data.source=nothing", ranks=2).finish()
    assert code != 0
    assert errors.count("progdist: data source 'nothing' is unknown") == 1
    assert "process 1: " not in errors


def test_sharded_training_is_the_same_and_what_it_writes_is_whole(recipe: Path, tmp_path: Path) -> None:
    """Two processes with half of every weight each are stopped; one with all of them continues from the checkpoint."""
    settings = ("--set", "teacher.ema=0", "--set", "teacher.checkpoint_every=5")
    succeeds("run", recipe, "--out", tmp_path / "alone", *settings)
    out = tmp_path / "run"
    process = start_run(recipe, out, *settings, "--shard", ranks=2)
    wait_for(process, lambda: count_updates(out) > 24)
    process.send_signal(signal.SIGTERM)
    _, errors = process.finish()
    assert "stopped by SIGTERM" in errors
    assert difference(weights(tmp_path / "alone", "teacher"), weights(out, "teacher")) < 3e-5
    assert list((out / "checkpoints" / "student-0004").glob("*.json"))
    succeeds("run", recipe, "--out", out, *settings)
    assert difference(weights(tmp_path / "alone", "student-0004"), weights(out, "student-0004")) < 3e-5


def test_sharding_takes_several_processes(recipe: Path, tmp_path: Path) -> None:
    refused(call("run", recipe, "--out", tmp_path / "run", "--shard"), "sharding requires several processes")
