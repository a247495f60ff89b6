"""The page to play with, of models that take a prompt or a guidance scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from progdist import UserError
from progdist.data.grid import grid_image
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.methods.guidance import Input
from progdist.models.prompts import PromptEncoder
from progdist.runs.pages.play import IMAGES, DrawRequest, Playable
from progdist.teachers.open import open_teacher
from support.guidance import student
from support.png import pixels
from support.stock import SaveStock
from support.text import text_student, write_sd

pytestmark = pytest.mark.slow


def test_prompts_and_guidance_reach_a_text_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes a guidance scale; a prompt is encoded once."""
    pytest.importorskip("transformers")
    text = Playable("text", text_student(write_sd(tmp_path / "sd"), Input(1.0, 8.0), 2), 2)
    assert text.describe()["guidance"] == [1.0, 8.0, 7.5]
    encoded: list[str] = []
    encode = PromptEncoder.__call__
    monkeypatch.setattr(
        PromptEncoder, "__call__", lambda self, prompts: encoded.extend(prompts) or encode(self, prompts)
    )
    wanted = DrawRequest(0, 2, prompt="a handwritten seven", guidance=2.0)
    several = (
        wanted,
        replace(wanted, guidance=5.0),
        replace(wanted, guidance=None),
        replace(wanted, prompt="an eight"),
    )
    drawn = [text.draw(each)["image"] for each in several]
    assert len(set(drawn)) == 4
    assert encoded == ["a handwritten seven", "an eight"]
    assert text.draw(wanted)["image"] == drawn[0]
    with pytest.raises(UserError, match="write what to make"):
        text.draw(replace(wanted, prompt=" "))


def test_guidance_reaches_a_class_conditional_model(stock: SaveStock) -> None:
    """The range is that of the model, and its images are those of `progdist sample --guidance`."""
    model = student(open_teacher(str(stock(classes=11))).model, 2)
    played = Playable("classes", model, 2)
    assert played.describe()["guidance"] == [1.0, 8.0, 4.0]
    wanted = DrawRequest(0, 2, guidance=2.0)
    drawn = {scale: played.draw(replace(wanted, guidance=scale))["image"] for scale in (2.0, 4.0, None)}
    assert drawn[4.0] == drawn[None] != drawn[2.0]
    images, _, _ = generate_images(model, SamplingOptions(2, IMAGES, None, 0, guidance=2.0), lambda text: None)
    np.testing.assert_array_equal(pixels(drawn[2.0]), np.asarray(grid_image(images, 4)))
