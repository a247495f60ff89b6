"""The page to play with, of models that take a prompt or a guidance scale."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from progdist import Denoiser, UserError
from progdist._utils.random import SAMPLING_NOISE, generator
from progdist.data.grid import grid_image
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.methods.guidance import Input
from progdist.models.conditioning import Classes
from progdist.models.model import Model
from progdist.models.prompts import PromptEncoder
from progdist.recipes.files import validated, write_recipe
from progdist.runs.pages.play import IMAGES, DrawRequest, Playable, open_playables
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from support.guidance import student
from support.png import pixels
from support.stock import SaveStock, load_unet, stock_samples
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
    with pytest.raises(UserError, match="requires a prompt: enter one"):
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


def test_a_persons_own_teacher_comes_first(
    stock: SaveStock, tiny_model: Callable[..., Denoiser], tmp_path: Path
) -> None:
    """Before what stage 0 made of it, and guided as that learned it: the mixture of stock networks, sampled by DDIM."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    place, run = stock(scheduler, classes=11), tmp_path / "run"
    content = {
        "name": "a", "data": {"source": "digits"}, "teacher": {"model": str(place)},
        "conversion": {"guidance": 2.0, "null_class": 10}, "distill": {"chain": [8, 4]},
    }  # fmt: skip
    names = Classes(tuple(map(str, range(11))), null_class=10)
    save(Model(tiny_model(classes=11), conditioning=names, data="digits"), run / "converted")
    (run / "recipe.yaml").write_text(write_recipe(validated(content, [], "test")))
    teacher, converted = open_playables([run])
    assert [teacher.title, converted.title] == ["run/teacher", "run/converted"]
    assert teacher.describe()["steps"] == 8
    unet = load_unet(place)

    def guided(z: Tensor, t: Tensor, class_labels: Tensor) -> Any:  # noqa: ANN401
        without = unet(z, t, class_labels=torch.full_like(class_labels, 10)).sample
        return SimpleNamespace(sample=without + 2 * (unet(z, t, class_labels=class_labels).sample - without))

    noise = torch.randn(IMAGES, 1, 8, 8, generator=generator(5, SAMPLING_NOISE))
    expected = stock_samples(guided, scheduler, noise, 8, class_labels=torch.full((IMAGES,), 7))
    drawn = pixels(teacher.draw(DrawRequest(5, 8, label=7))["image"]).astype(int)
    assert np.abs(drawn - np.asarray(grid_image(expected, 4)).astype(int)).max() <= 1
