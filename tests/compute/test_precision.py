"""Precision: what `auto` chooses on this machine and on one without bf16."""

import os
import subprocess
import sys

import pytest
import torch

from progdist.compute import precision
from progdist.compute.precision import MARGIN, autocast, bf16_speedup, emulation_warning, resolve

CPU = torch.device("cpu")


@pytest.fixture
def bf16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which bf16 is twice as fast."""
    monkeypatch.setattr("progdist.compute.precision.bf16_speedup", lambda device: 2.0)


@pytest.fixture
def bf16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which bf16 is ten times as slow."""
    monkeypatch.setattr("progdist.compute.precision.bf16_speedup", lambda device: 0.1)


def test_what_is_asked_for_is_kept(bf16_is_slow: None) -> None:
    assert resolve("bf16", CPU) == "bf16"
    assert resolve("float32", CPU) == "float32"


def test_auto_takes_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    for speedup, chosen in ((0.01, "float32"), (1.0, "float32"), (MARGIN, "bf16"), (4.0, "bf16")):
        monkeypatch.setattr("progdist.compute.precision.bf16_speedup", lambda device, speedup=speedup: speedup)
        assert resolve("auto", CPU) == chosen
        with autocast(CPU, "auto"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if chosen == "bf16" else torch.float32)


@pytest.mark.parametrize(("major", "chosen"), [(7, "float32"), (8, "bf16"), (9, "bf16")])
def test_cuda_tells_by_its_compute_capability(monkeypatch: pytest.MonkeyPatch, major: int, chosen: str) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (major, 0))
    bf16_speedup.cache_clear()
    assert resolve("auto", torch.device("cuda")) == chosen
    bf16_speedup.cache_clear()


def test_other_devices_stay_in_float32() -> None:
    assert resolve("auto", torch.device("mps")) == "float32"


@pytest.mark.slow
def test_a_processor_that_emulates_bf16_is_found_out() -> None:
    """Under the two variables that take AVX-512 and AMX away, `auto` is float32 within a second, on any machine."""
    code = (
        "import torch, time; from progdist.compute.precision import *; started = time.perf_counter();"
        "print(resolve('auto', torch.device('cpu')), emulation_warning(torch.device('cpu')));"
        "assert time.perf_counter() - started < 10"
    )
    without = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | without, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("float32 precision is bf16, but this processor is ")


def test_no_warning_where_it_pays(bf16_is_fast: None) -> None:
    assert emulation_warning(CPU) is None
    assert precision.emulation_warning(torch.device("cuda")) is None
