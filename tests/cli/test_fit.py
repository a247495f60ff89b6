"""`progdist fit`: what it prints, and what it refuses."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny_pipelines
from progdist.recipes.files import override
from progdist.recipes.from_teacher import Request, recipe_for_teacher
from progdist.runs.estimate.fit import BATCHES, KINDS, Fit, Fits, Setting
from progdist.runs.estimate.memory import Memory
from progdist.teachers.open import open_teacher
from support.commands import call, refused, succeeds

GIB = 2**30
WIDTH = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Flux's configs, without its weights."""
    place = tmp_path_factory.mktemp("configs")
    built = tiny_pipelines.build("FluxPipeline", place / "whole")
    return Path(shutil.copytree(built, place / "configs", ignore=shutil.ignore_patterns("*.safetensors")))


def large(*_: object, **__: object) -> Fits:
    """What a network of 14 billion parameters may hold, and one setting that is small."""
    memory = Memory(53 * GIB, 53 * GIB, 106 * GIB, 0, 27 * GIB, 1900 * GIB, 0)
    small = Memory(GIB, GIB, 2 * GIB, 0, 5 * GIB, 2 * GIB, 0)
    rows = [
        Fit(Setting(training, checkpointing, batch, bits), memory, batch * 10**15)
        for training, bits in KINDS
        for checkpointing in (False, True)
        for batch in BATCHES
    ]
    rows[-1] = Fit(Setting("LoRA", True, 4, 4), small, 4 * 10**15)
    return Fits("WanTransformer3DModel", 14_288_491_584, "480x832 pixels, 81 frames", 10**14, tuple(rows))


@pytest.mark.slow
def test_a_folder_of_configs(folder: Path) -> None:
    result = succeeds("fit", folder, "--height", 16, "--width", 16, "--memory", 1, "--tflops", 2)
    assert "FluxTransformer2DModel" in result.output
    assert "16x16 pixels" in result.output
    assert "a lower bound" in result.output
    assert "1 GiB: the whole network with AdamW, 4 at a time" in result.output
    assert max(map(len, result.output.splitlines())) <= WIDTH
    rows = [line.split() for line in result.output.splitlines() if re.match(r"(AdamW|8bit|LoRA)\S* +(no|yes)", line)]
    assert len(rows) == 20
    assert [row[0] for row in rows][8::4] == ["LoRA", "LoRA8", "LoRA4"]
    for *_, operations, seconds in rows:
        assert float(seconds) == pytest.approx(float(operations) / 2, rel=0.01)


@pytest.mark.parametrize("more", [(), ("--tflops", 412.5), ("--memory", "11,24", "--memory", 80, "--memory", 141)])
def test_large_numbers_fit_80_columns(folder: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]) -> None:
    monkeypatch.setattr("progdist.runs.estimate.fit.fits", large)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    result = succeeds("fit", folder, *more)
    assert max(map(len, result.output.splitlines())) <= WIDTH
    assert "…" not in result.output
    assert "2139" in result.output
    text = " ".join(result.output.split())
    least = "11 GiB: none of these with a tenth left; the least is 11.0 GiB" if more[:1] == ("--memory",) else "12 GiB:"
    assert least in text
    best = "LoRA of rank 64 on a base of 4 bits and gradient checkpointing, 4 at a time (11.0 GiB)"
    assert f"24 GiB: {best}: progdist distill ... --batch 64 --set lora=64 --set base_bits=4" in text
    assert " 4000" in text
    assert "e+" not in text


def test_the_options_are_those_of_distill(tmp_path: Path) -> None:
    """A recipe takes them."""
    whole = tiny_pipelines.build("FluxPipeline", tmp_path / "whole")
    teacher = open_teacher(str(whole), call={"height": 16, "width": 16, "max_sequence_length": 32})
    recipe = recipe_for_teacher(teacher, Request(str(whole), "teacher:8", "name", 4))
    chosen: Any = override(recipe, Setting("LoRA", True, 4).options(64)).distill
    assert (chosen.lora_rank, chosen.gradient_checkpointing, chosen.gradient_accumulation_steps) == (64, True, 16)
    quantized = override(recipe, Setting("LoRA", False, 4, 8).options(64))
    assert (quantized.lora, quantized.base_bits, quantized.distill.gradient_accumulation_steps) == (64, 8, 16)
    chosen = override(recipe, Setting("adamw8bit", False, 1).options(64)).distill
    assert (chosen.optimizer, chosen.gradient_accumulation_steps) == ("adamw8bit", 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory", "many"), "--memory many: expected GiB"),
        (("--memory", "0"), "--memory 0: expected GiB"),
        (("--memory", "nan"), "--memory nan: expected GiB"),
        (("--memory", "1,2,3,4,5"), "--memory has 5 sizes, expected at most 4"),
        (("--tflops", "0"), "--tflops is 0, expected a positive number"),
        (("--frames", "5"), "--frames has no effect on a FluxTransformer2DModel"),
        (("--height", "15"), "height 15: expected a multiple of 4"),
    ],
)
def test_what_is_refused(folder: Path, options: tuple[str, ...], message: str) -> None:
    refused(call("fit", folder, *options), message)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(call("fit", tmp_path), "model_index.json cannot be read")
