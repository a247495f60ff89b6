"""The benchmarks run: the GPU's in its tiny form, so that it works on the day there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_its_tiny_form(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--out", tmp_path / "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert max(figures["parity"].values()) <= 2e-4
    assert set(figures["minutes"]) == {"digits"}
    assert figures["variants"]["tiny float32"]["updates_per_second"] > 0
