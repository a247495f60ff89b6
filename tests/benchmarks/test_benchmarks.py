"""The benchmarks run: the GPU's in its tiny form, so that it works on the day there is one."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.paths import ROOT


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a benchmark in an empty folder, in this process."""

    def run(name: str, *arguments: str) -> None:
        script = ROOT / "benchmarks" / name
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(script.parent)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")

    return run


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_its_tiny_form(benchmark: Callable[..., None], tmp_path: Path) -> None:
    benchmark("performance/gpu.py", "--tiny", "--out", "gpu")
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert max(figures["parity"].values()) <= 2e-4
    assert set(figures["minutes"]) == {"digits"}
    assert figures["variants"]["tiny float32 plain"]["updates_per_second"] > 0


@pytest.mark.slow
def test_the_variants_are_compared(
    benchmark: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("network.width=8", "network.groups=4", "teacher.updates=2", "evaluate.samples=32")
    settings = [word for setting in small for word in ("--set", setting)]
    arguments = ("digits", "--out", "out", "--budget", "8000", "--seeds", "0", "--variants", "tract", *settings)
    benchmark("experiments/distillation_methods.py", *arguments)
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(one["variant"], one["steps"]) for one in records][-1] == ("tract", 1)
    assert all(set(one["frechet"]) == {"digits", "pixels"} for one in records)
    assert "| tract | 1 | ddim 1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_candidates_are_compared(benchmark: Callable[..., None], tmp_path: Path) -> None:
    """One of a chain, one with a memory of its own updates, and one with a loop of its own."""
    small = ("network.width=8", "network.groups=4", "teacher.updates=2", "evaluate.samples=32")
    settings = [word for setting in small for word in ("--set", setting)]
    names = ("from 32, solver", "multistep consistency to 2", "moment matching to 1")
    arguments = ("digits", "--out", "out", "--budget", "8000", "--seeds", "0", "--variants", *names, *settings)
    benchmark("experiments/other_methods.py", *arguments)
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    measured = [(one["variant"], one["student"], one["method"]) for one in records if one["variant"] != "teacher"]
    solver = [(names[0], steps, "ddim") for steps in (4, 2, 1)]
    assert measured == [*solver, (names[1], 2, "ddim"), (names[2], 1, "posterior")]
    assert all(set(one["frechet"]) == {"digits", "pixels"} for one in records)
