"""What the README says runs as it is written: every command, every snippet.

Commands run in the README's order in one folder, in which the person's own model, images and recipe lie. Training is
made short by settings that the README does not have; nothing else is changed.
"""

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from progdist.models.unet import unet
from progdist.recipes.shipped import shipped
from support.commands import call
from support.paths import REFERENCE, ROOT

README = (ROOT / "README.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


COMMANDS = [re.sub(r"\s+#.*", "", line) for line in re.findall(r"^    (\S.*)$", README, re.M)]


BRIEF = "teacher.updates=2 evaluate.samples=16 evaluate.resamples=2 evaluate.most_steps=8"


SHORT = {
    "run digits": f"network.width=8 network.groups=4 {BRIEF}",
    "run my-images.yaml": f"network.width=8 network.groups=4 {BRIEF}",
    "distill": "conversion.updates=2 evaluate.samples=16 evaluate.resamples=2 teacher.trust=true",
}


FEW = {
    "evaluate": ("-n", 24, "--batch", 24),
    "export": ("--steps", 1),  # the exporter traces every step
}


STAGES = ("--set", "distill.stages={}", "--set", "distill.updates=1")


NOT_RUN = {"play": "serves until it is stopped: tests/runs/pages runs it"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README takes for granted."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(REFERENCE / "stock_teacher", folder / "my-model")
    (folder / "my-images").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "my-images" / f"{number}.png")
    return folder


def shortened(arguments: list[str]) -> list[str]:
    """A command with settings that make its training short."""
    key = next((key for key in sorted(SHORT, key=len, reverse=True) if " ".join(arguments).startswith(key)), None)
    if key is None or arguments[0] not in ("run", "distill"):
        return arguments
    settings = [word for setting in SHORT[key].split() for word in ("--set", setting)]
    return [*arguments, *settings, *STAGES]


@pytest.mark.slow
def test_every_command_runs_in_its_order(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    done = 0
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program != "progdist" or arguments[0] in NOT_RUN:
            continue
        if arguments[0] == "doctor":  # the images are noise, which the teacher has never seen
            assert call(*arguments).exit_code in (0, 2)
            continue
        result = call(*shortened(arguments), *FEW.get(arguments[0], ()))
        assert result.exit_code == 0, f"{command}: {result.output}"
        done += 1
    assert done >= 9
    assert (desk / "grid.png").is_file()
    assert (desk / "student.onnx").is_file()


@pytest.mark.slow
def test_the_snippet_of_the_stock_pipeline_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    if not Path("runs/digits").exists():
        result = call(*shortened(["run", "digits"]))
        assert result.exit_code == 0, result.output
    names: dict[str, Any] = {}
    exec(next(text for text in BLOCKS if "DDIMPipeline" in text).replace("batch_size=64", "batch_size=2"), names)
    assert len(names["images"]) == 2


def test_the_example_of_ones_own_model_runs() -> None:
    block = next(text for text in BLOCKS if "progdist.distill(" in text)
    names: dict[str, Any] = {
        "my_network": unet(image=(1, 8, 8), width=8, multipliers=(1, 2), groups=4),
        "data": torch.randn(4, 1, 8, 8).clamp(-1, 1),
        "noise": torch.randn(3, 1, 8, 8),
    }
    exec(block, names)
    assert names["images"].shape == (3, 1, 8, 8)


def test_every_snippet_and_command_is_one_that_is_known() -> None:
    """What a test here does not run must be named here."""
    assert all("DDIMPipeline" in block or "progdist.distill(" in block for block in BLOCKS)
    from progdist.cli.app import app

    commands = {command.name or str(command.callback.__name__) for command in app.registered_commands}  # pyright: ignore
    for command in COMMANDS:
        program, *arguments = command.split()
        assert program in ("pip", "progdist")
        assert program != "progdist" or arguments[0] in commands
    assert {name for name in re.findall(r"progdist run ([a-z0-9-]+)\s", README)} <= set(shipped())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"progdist\[(\w+)\]", README)) <= set(extras)


@pytest.mark.parametrize("target", re.findall(r"`make (\w+)`", README))
def test_make_targets_that_it_names_exist(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
