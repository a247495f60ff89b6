"""Recipes that change one thing of the tiny one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe


@pytest.fixture
def tiny(tiny_recipe: Path, tmp_path: Path) -> Callable[..., Recipe]:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 255, (5, 16, 16), dtype=np.uint8), labels=np.arange(5))
    np.savez(tmp_path / "wide.npz", images=rng.integers(0, 255, (5, 16, 24), dtype=np.uint8))
    (tmp_path / "transparent").mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (8, 8, 4), dtype=np.uint8)).save(
            tmp_path / "transparent" / f"{number}.png"
        )
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(64), sigma=np.eye(64))

    def build(**changes: object) -> Recipe:
        marks = {"npz": "images.npz", "wide": "wide.npz", "statistics": "statistics.npz"}
        marks |= {name: name for name in ("transparent", "missing")}
        texts = [f"{key}={value}" for key, value in changes.items()]
        for mark, file in marks.items():
            texts = [text.replace(f"{{{mark}}}", str(tmp_path / file)) for text in texts]
        return read_recipe(str(tiny_recipe), texts)

    return build
