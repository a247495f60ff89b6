"""Pairs of image and caption for the runs of text-to-image pipelines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.text import PROMPTS


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    place, draw = tmp_path / "pairs", np.random.default_rng(0)
    place.mkdir()
    for number in range(12):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(place / f"{number:02d}.png")
        (place / f"{number:02d}.txt").write_text(PROMPTS[number % 3])
    return place
