"""Recipes, version, and mistakes on the command line."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from typer.testing import Result

from progdist._utils.names import Distillation, Method
from progdist.diffusion.sampler import MULTISTEP_SAMPLERS, SAMPLERS
from progdist.methods import METHODS
from support.commands import call, refused


def test_recipes_and_version() -> None:
    assert "digits" in call("recipes").stdout
    assert "\nname: digits\n" in call("recipes", "digits").stdout
    assert call("--version").stdout.strip() == "0.1.0"


@pytest.mark.slow
def test_mistakes_are_one_line_and_exit_code_2(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, student = finished[0], finished[0] / "student-0004"
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    refused(call("run", tiny_recipe, "--set", "distill.upd=5"), "did you mean updates?")
    refused(call("run", tiny_recipe, "--set", "distill.chain=[8,3]"), "not a multiple of 3")
    refused(call("run", "digit"), "did you mean digits?")
    refused(call("run", tiny_recipe, "--out", out), "another recipe", "--out")
    refused(call("run", tiny_recipe, "--out", tiny_recipe), "is not a run")
    (tmp_path / "empty").mkdir()
    empty = f"data.source=folder:{tmp_path}/empty"
    refused(call("run", tiny_recipe, "--out", tmp_path / "a", "--set", empty), "no images")
    refused(call("run", tiny_recipe, "--out", tmp_path / "b", "--set", "network.multipliers=[1,1,1,1,1]"), "halve")
    refused(
        call("run", tiny_recipe, "--out", tmp_path / "c", "--set", "teacher.gradient_accumulation_steps=3"),
        "is not divisible by",
    )
    refused(call("sample", tmp_path / "nowhere"), "is not a folder: it does not exist")
    refused(call("sample", student, "--steps", 0), "takes 1 to")
    monkeypatch.chdir(tmp_path)
    refused(call("sample", student, "--label", 10), "label 10 is out of range", "0 to 9")
    refused(call("sample", out / "teacher"), "set steps, e.g. 256")
    refused(
        call("sample", student, "--out", tmp_path / "x.jpg"),
        "ends in .jpg, expected a folder, or a name that ends in .png, .npz",
    )
    refused(call("evaluate", student, "--data", "digits", "--features", "fashion-mnist"), "pixels")
    refused(call("report", tmp_path), "is not a run")
    np.savez(tmp_path / "wide.npz", images=np.zeros((4, 8, 12, 3), np.uint8))
    shutil.copytree(student, tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(call("sample", tmp_path / "cut"), str(weights.parent), "is not what was written")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))


@pytest.mark.slow
def test_the_module_runs_and_reports_mistakes_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "progdist", "run", "no-such-recipe"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_the_commands_know_the_methods_without_torch() -> None:
    assert get_args(Method) == (*SAMPLERS, *MULTISTEP_SAMPLERS)
    assert get_args(Distillation) == tuple(METHODS)
    code = "import sys, progdist.cli.app; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [("recipes", 0), ("recipes digits", 0), ("run digitz", 2), ("distill my-model", 2), ("run --help", 0)],
)
def test_lists_help_and_mistyped_names_need_no_torch(words: str, code: int) -> None:
    """They are there in a third of a second of a processor; to import torch takes two."""
    script = (
        "import sys\nfrom progdist.cli.app import start\n"
        f"try: start({words.split()})\nexcept SystemExit as end: assert (end.code or 0) == {code}, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
