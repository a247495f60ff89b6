"""The commands and snippets of docs/sampling.md, on small models with random weights in the folders that it names."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import progdist
from progdist.models.unet import unet
from support.commands import succeeds
from support.paths import ROOT

PAGE = (ROOT / "docs" / "sampling.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
COMMANDS = [shlex.split(line) for line in re.findall(r"^    progdist (\S.*)$", PAGE, re.M)]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two students of the page, each of four steps."""
    for folder, size, classes in (("digits", 8, 0), ("fashion-mnist", 28, 10)):
        network = unet(image=(1, size, size), width=8, multipliers=(1, 2), groups=4, classes=classes).eval()
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        denoiser = progdist.Denoiser(network, progdist.Cosine(), "v_prediction")
        progdist.save(denoiser, tmp_path / "runs" / folder / "student-0004", steps=[4])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(block: str) -> dict[str, Any]:
    """The names that a snippet leaves."""
    names: dict[str, Any] = {}
    exec(block.replace("batch_size=64", "batch_size=2").replace("torch.randn(64", "torch.randn(2"), names)
    return names


def test_what_its_snippets_make_is_what_progdist_makes(desk: Path) -> None:
    stock, python = (run(block) for block in BLOCKS[:2])
    assert len(stock["images"]) == 2
    assert python["images"].shape == (2, 1, 8, 8)
    student = progdist.load("runs/fashion-mnist/student-0004")
    torch.manual_seed(0)
    classes = run(f"import torch\ntorch.manual_seed(0)\n{BLOCKS[2]}")
    torch.manual_seed(0)
    ours = progdist.sample(student, torch.randn(10, 1, 28, 28), steps=4, class_labels=torch.arange(10))
    torch.testing.assert_close(classes["z"], ours, rtol=0, atol=1e-4)


def test_its_commands_run(desk: Path) -> None:
    """The first; exports and Spaces take a minute and have tests of their own (tests/students)."""
    assert {command[0] for command in COMMANDS} == {"sample", "export", "play"}
    name, *arguments = COMMANDS[0]
    succeeds(name, *arguments)
    assert (desk / "grid.png").stat().st_size > 1000
