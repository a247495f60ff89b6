"""A written Space: its app.py, imported as it stands, makes progdist's own samples with stock diffusers alone."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import progdist
from progdist import Cosine, Denoiser, RectifiedFlow
from progdist.methods.guidance import Input
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.model import Model
from progdist.students.folder import save
from support.commands import call, refused, succeeds
from support.text import text_student, write_sd


class Recorded:
    """Stands for a class of Gradio, which the tests' environment lacks: keeps what it is made with."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        self.arguments, self.options = arguments, options


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """The `demo` of a Space's app.py, imported from its folder as the hub does."""
    gradio: Any = ModuleType("gradio")
    gradio.Interface = gradio.Number = gradio.Dropdown = gradio.Slider = gradio.Textbox = gradio.Gallery = Recorded

    def open_space(space: Path) -> Any:  # noqa: ANN401
        monkeypatch.setitem(sys.modules, "gradio", gradio)
        monkeypatch.chdir(space)
        return runpy.run_path("app.py")["demo"]

    return open_space


def metadata(space: Path) -> dict[str, Any]:
    return yaml.safe_load((space / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize(("schedule", "parameterization"), [(Cosine(), "v"), (RectifiedFlow(), "velocity")])
@pytest.mark.parametrize("names", [(), ("cat", "dog's", "owl")])
def test_a_space_draws_what_progdist_samples(
    tiny_model: Callable[..., Denoiser], tmp_path: Path, opened: Callable[[Path], Any],
    schedule: Any, parameterization: str, names: tuple[str, ...],  # noqa: ANN401
) -> None:  # fmt: skip
    denoiser, student, space = tiny_model(schedule, parameterization, len(names)), tmp_path / "four", tmp_path / "space"
    save(Model(denoiser, (4,), (16, 8), Classes(names) if names else Conditioning(), "digits"), student)
    said = succeeds("play", student, "--space", space).stdout
    assert "hf upload OWNER/NAME" in said
    demo = opened(space)
    draw, inputs, _ = demo.arguments
    assert [each.options["label"] for each in inputs] == ["seed", "class"][: 2 if names else 1]
    if names:
        assert inputs[1].arguments[0] == [("cat", 0), ("dog's", 1), ("owl", 2)]
    images = draw(5, *([2] if names else []))
    noise = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    condition: dict[str, Any] = {"class_labels": torch.full((16,), 2)} if names else {}
    expected = progdist.sample(progdist.load(student), noise, 4, **condition)
    for image, own in zip(images, expected, strict=True):
        pixels = np.asarray(image)[::8, ::8].astype(float)  # each pixel is 8x8
        assert image.size == (64, 64)
        assert np.abs(pixels - ((own[0].clamp(-1, 1) + 1) * 127.5).numpy()).max() <= 1
    about = metadata(space)
    assert (about["sdk"], about["app_file"], about["title"]) == ("gradio", "app.py", "four")
    assert {"license", "sdk_version"} < set(about)
    assert "models" not in about
    assert "diffusers==" in (space / "requirements.txt").read_text()
    assert "progdist" not in (space / "requirements.txt").read_text()


@pytest.mark.slow
def test_a_space_of_a_text_model_takes_prompts_and_guidance(tmp_path: Path, opened: Callable[[Path], Any]) -> None:
    """Of a range that is an input; the images are those of the stock pipeline in the student's folder."""
    pytest.importorskip("transformers")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    save(text_student(write_sd(tmp_path / "sd"), Input(1.0, 8.0), 2), tmp_path / "student")
    succeeds("play", tmp_path / "student", "--space", tmp_path / "space")
    draw, inputs, _ = opened(tmp_path / "space").arguments
    assert [each.options["label"] for each in inputs] == ["seed", "prompt", "guidance"]
    assert inputs[2].arguments == (1, 8)
    drawn = draw(3, "a handwritten seven", 2.0)
    stock: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    same = {"num_images_per_prompt": 16, "num_inference_steps": 2, "guidance_scale": 2.0}
    images = stock("a handwritten seven", generator=torch.Generator().manual_seed(3), **same).images
    size = images[0].size
    for image, own in zip(drawn, images, strict=True):
        factor = image.size[0] // size[0]
        np.testing.assert_array_equal(np.asarray(image)[::factor, ::factor], np.asarray(own))
    assert not np.array_equal(np.asarray(drawn[0]), np.asarray(draw(3, "a handwritten seven", 7.0)[0]))


def test_a_space_of_a_model_on_the_hub_names_it(
    tiny_model: Callable[..., Denoiser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from progdist.teachers import open as opening

    save(Model(tiny_model(), (4,), (8,)), tmp_path / "fetched")
    monkeypatch.setattr(opening, "resolve_folder", lambda source: tmp_path / "fetched")
    succeeds("play", "hub:someone/four-steps@main", "--space", tmp_path / "space")
    assert metadata(tmp_path / "space")["models"] == ["someone/four-steps"]
    assert (
        "DDIMPipeline.from_pretrained('someone/four-steps', revision='main')"
        in (tmp_path / "space" / "app.py").read_text()
    )
    assert not (tmp_path / "space" / "student").exists()


def test_what_no_space_can_run_is_refused(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    """In one line, and nothing is left."""
    save(Model(tiny_model(parameterization="x_eps"), (4,), (8,)), tmp_path / "two-headed")
    save(Model(tiny_model(), (4,), (8,)), tmp_path / "plain")
    refused(
        call("play", tmp_path / "two-headed", "--space", tmp_path / "space"),
        "requires a student that stock diffusers alone samples",
    )
    refused(call("play", tmp_path / "plain", "--space", tmp_path / "plain"), "exists: choose another folder")
    two = (tmp_path / "plain", tmp_path / "two-headed")
    refused(call("play", *two, "--space", tmp_path / "space"), "--space requires one model, got 2")
    refused(call("play", two[0], "--space", tmp_path / "space", "--port", 1), "--port has no effect with --space")
    refused(call("play", two[0], "--space", tmp_path / "space", "--no-browser"), "--browser has no effect with")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "two-headed"]
