"""The benchmarks run: the GPU's in its tiny form, so that it works on the day there is one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.paths import ROOT

Result = subprocess.CompletedProcess[str]


@pytest.fixture
def benchmark(tmp_path: Path) -> Callable[..., Result]:
    """Runs a benchmark in an empty folder."""

    def run(name: str, *arguments: str) -> Result:
        command = [sys.executable, ROOT / "benchmarks" / name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_its_tiny_form(benchmark: Callable[..., Result], tmp_path: Path) -> None:
    done = benchmark("performance/gpu.py", "--tiny", "--out", "gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert max(figures["parity"].values()) <= 2e-4
    assert set(figures["minutes"]) == {"digits"}
    assert figures["variants"]["tiny float32 plain"]["updates_per_second"] > 0


@pytest.mark.slow
def test_the_variants_are_compared(benchmark: Callable[..., Result], tmp_path: Path) -> None:
    small = ("network.width=8", "network.groups=4", "teacher.updates=2", "evaluate.samples=32")
    settings = [word for setting in small for word in ("--set", setting)]
    arguments = ("digits", "--out", "out", "--budget", "8000", "--seeds", "0", "--variants", "tract", *settings)
    done = benchmark("experiments/distillation_methods.py", *arguments)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(one["variant"], one["steps"]) for one in records][-1] == ("tract", 1)
    assert all(set(one["frechet"]) == {"digits", "pixels"} for one in records)
    assert "| tract | 1 | ddim 1 |" in done.stdout


@pytest.mark.slow
def test_the_candidates_are_compared(benchmark: Callable[..., Result], tmp_path: Path) -> None:
    """One of a chain, one with a memory of its own updates, and one with a loop of its own."""
    small = ("network.width=8", "network.groups=4", "teacher.updates=2", "evaluate.samples=32")
    settings = [word for setting in small for word in ("--set", setting)]
    names = ("from 32, solver", "multistep consistency to 2", "moment matching to 1")
    arguments = ("digits", "--out", "out", "--budget", "8000", "--seeds", "0", "--variants", *names, *settings)
    done = benchmark("experiments/other_methods.py", *arguments)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    measured = [(one["variant"], one["student"], one["method"]) for one in records if one["variant"] != "teacher"]
    solver = [(names[0], steps, "ddim") for steps in (4, 2, 1)]
    assert measured == [*solver, (names[1], 2, "ddim"), (names[2], 1, "posterior")]
    assert all(set(one["frechet"]) == {"digits", "pixels"} for one in records)
