"""What the README says runs as it is written."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from progdist.network import unet
from progdist.recipe_file import shipped

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_example_of_ones_own_model_runs() -> None:
    block = next(text for text in BLOCKS if "progdist.distill(" in text)
    names: dict[str, Any] = {
        "my_network": unet(image=(1, 8, 8), width=8, multipliers=(1, 2), groups=4),
        "data": torch.randn(4, 1, 8, 8).clamp(-1, 1),
        "noise": torch.randn(3, 1, 8, 8),
    }
    exec(block, names)
    assert names["images"].shape == (3, 1, 8, 8)


def test_recipes_and_commands_that_it_names_exist() -> None:
    from progdist.cli import app

    commands = {command.name or str(command.callback.__name__) for command in app.registered_commands}  # pyright: ignore
    assert set(re.findall(r"^    progdist ([a-z-]+)", README, re.M)) <= commands
    assert {name for name in re.findall(r"progdist run ([a-z0-9-]+)\s", README)} <= set(shipped())


@pytest.mark.parametrize("target", re.findall(r"^    make (\w+)", README, re.M))
def test_make_targets_that_it_names_exist(target: str) -> None:
    assert f"\n{target}:" in (Path(__file__).parents[1] / "Makefile").read_text()
