"""The page to play with, of models that take a prompt or a guidance scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from progdist import UserError
from progdist.data.grid import grid_image
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.models.guidance_input import class_guidance, with_class_guidance
from progdist.models.prompt_encoder import PromptEncoder
from progdist.models.prompts import network_arguments, with_guidance_input
from progdist.runs.pages.play import IMAGES, Playable, Wanted
from progdist.teachers.open import read_teacher
from support.png import pixels
from support.stock import SaveStock
from support.text import write_sd

pytestmark = pytest.mark.slow


def test_prompts_and_guidance_reach_a_text_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes a guidance scale; a prompt is encoded once."""
    pytest.importorskip("transformers")
    teacher = read_teacher(str(write_sd(tmp_path / "sd"))).model
    assert teacher.text is not None
    network = with_guidance_input(teacher.denoiser.network)
    network.time_embedding.cond_proj.weight.data.normal_()  # pyright: ignore
    denoiser = teacher.denoiser.with_parts(network=network, arguments=network_arguments(network))
    text = Playable(
        "text", replace(teacher, denoiser=denoiser, steps=(2,), text=teacher.text.guided((1.0, 8.0), None)), 2
    )
    assert text.describe()["guidance"] == [1.0, 8.0, 7.5]
    encoded: list[str] = []
    encode = PromptEncoder.__call__
    monkeypatch.setattr(
        PromptEncoder, "__call__", lambda self, prompts: encoded.extend(prompts) or encode(self, prompts)
    )
    wanted = Wanted(0, 2, prompt="a handwritten seven", guidance=2.0)
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
    """Its dial is that of the model, and its images are those of `progdist sample --guidance`."""
    teacher = read_teacher(str(stock(classes=11))).model
    network = with_class_guidance(teacher.denoiser.network, (1.0, 8.0))
    guided = class_guidance(network)
    assert guided is not None
    guided.guidance.weight.data.normal_()
    denoiser = teacher.denoiser.with_parts(network=network, arguments=network_arguments(network))
    model = replace(teacher, denoiser=denoiser, steps=(2,))
    played = Playable("classes", model, 2)
    assert played.describe()["guidance"] == [1.0, 8.0, 4.0]
    wanted = Wanted(0, 2, guidance=2.0)
    drawn = {scale: played.draw(replace(wanted, guidance=scale))["image"] for scale in (2.0, 4.0, None)}
    assert drawn[4.0] == drawn[None] != drawn[2.0]
    images, _, _ = generate_images(model, SamplingOptions(2, IMAGES, None, 0, guidance=2.0), lambda text: None)
    np.testing.assert_array_equal(pixels(drawn[2.0]), np.asarray(grid_image(images, 4)))
