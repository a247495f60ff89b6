"""Precision: what `auto` chooses on this machine and on one without bf16, where it is recorded, what is told of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from conftest import call
from progdist._utils import precision
from progdist._utils.precision import MARGIN, autocast, bf16_speedup, emulation_warning, resolve
from progdist.recipes.files import read_recipe, shipped

CPU = torch.device("cpu")
AUTO = ("--set", "teacher.precision=auto", "--set", "distill.precision=auto", "--set", "evaluate.precision=auto")
SHORT = ("--set", "teacher.updates=2", "--set", "distill.chain=[8, 4]", "--set", "evaluate.samples=16")


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which bf16 is twice as fast."""
    monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device: 2.0)


@pytest.fixture
def emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which bf16 is ten times as slow."""
    monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device: 0.1)


def test_what_is_asked_for_is_kept(emulates: None) -> None:
    assert resolve("bf16", CPU) == "bf16"
    assert resolve("float32", CPU) == "float32"


def test_auto_takes_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    for speedup, chosen in ((0.01, "float32"), (1.0, "float32"), (MARGIN, "bf16"), (4.0, "bf16")):
        monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device, speedup=speedup: speedup)
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


def test_a_processor_that_emulates_bf16_is_found_out() -> None:
    """Under the two variables that take AVX-512 and AMX away, `auto` is float32 within a second, on any machine."""
    code = (
        "import torch, time; from progdist._utils.precision import *; started = time.perf_counter();"
        "print(resolve('auto', torch.device('cpu')), emulation_warning(torch.device('cpu')));"
        "assert time.perf_counter() - started < 10"
    )
    without = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", code], env=os.environ | without, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("float32 bf16 was asked for, and this processor computes ")


def test_the_choice_is_recorded_and_kept_elsewhere(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device: 0.1)
    monkeypatch.setattr("progdist.runs.checks.bf16_speedup", lambda device: 0.1)
    words = ("run", tiny_recipe, "--out", tmp_path / "run", *SHORT, *AUTO)
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "precision: float32 (bf16 would be 0.1 times as fast" in result.output
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [recipe[part]["precision"] for part in ("teacher", "distill", "evaluate")] == ["float32"] * 3
    told = json.loads((tmp_path / "run" / "student-0004" / "progdist.json").read_text())
    assert told["training"]["precision"] == "float32"
    monkeypatch.setattr("progdist._utils.precision.bf16_speedup", lambda device: 3.0)
    again = call(*words)
    assert again.exit_code == 0, again.output
    expected = "teacher and distill and evaluate: float32, as the run was begun; here bf16 is faster"
    assert expected in " ".join(again.output.split())
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == recipe


def test_bf16_where_it_is_emulated_is_one_line(tiny_recipe: Path, tmp_path: Path, emulates: None) -> None:
    result = call("run", tiny_recipe, "--out", tmp_path / "run", *SHORT, "--set", "distill.precision=bf16")
    assert result.exit_code == 0, result.output
    assert " ".join(result.output.split()).count("10.0 times as fast in float32") == 1


def test_no_warning_where_it_pays(pays: None) -> None:
    assert emulation_warning(CPU) is None
    assert precision.emulation_warning(torch.device("cuda")) is None


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_ask_for_auto(name: str) -> None:
    assert set(read_recipe(name).precisions().values()) == {"auto"}
