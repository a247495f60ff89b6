"""`progdist.evaluate`: folders and denoisers, sources and tensors give the numbers of the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from progdist import Cosine, Denoiser, UserError, save
from progdist.data.sources import load_images
from progdist.evaluation.evaluate import evaluate
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.metrics import MetricConfig
from progdist.models.model import Model
from progdist.teachers.own import load
from support.commands import succeeds

PIXELS = MetricConfig(("pixels",), ("precision_recall",))


def silent(text: str) -> None:
    """Say nothing."""


def test_every_kind_of_model_and_data_gives_the_same_numbers(
    tiny_model: Callable[..., Denoiser], tmp_path: Path
) -> None:
    model, folder, options = tiny_model(), tmp_path / "model", SamplingOptions(count=40, batch=16)
    save(model, folder, steps=[2])
    digits = load_images("digits")
    pixels, labels = digits.at(torch.arange(len(digits)))
    (first,) = evaluate(folder, "digits", options, PIXELS, notify=silent)
    assert (first.model, first.steps, first.rmse) == (str(folder), 2, None)
    assert set(first.quality[0].metrics) == {"precision", "recall"}
    for data in (digits, pixels, TensorDataset(pixels, labels)):
        (other,) = evaluate((model, 2), data, options, PIXELS, notify=silent)
        assert (other.model, other.quality) == ("model 1", first.quality)
    same, more = evaluate([str(folder), (folder, 3)], pixels, options, PIXELS, teacher=(model, 2), notify=silent)
    assert (same.quality, same.rmse) == (first.quality, 0)
    assert more.steps == 3
    assert more.rmse is not None
    assert more.rmse > 0
    words = ("evaluate", folder, "--data", "digits", "-n", 40, "--batch", 16, "--metric", "precision_recall", "--json")
    printed = json.loads(succeeds(*words, "--precision", "float32").stdout)
    assert (printed["frechet"], printed["metrics"]) == (first.quality[0].frechet, first.quality[0].to_json()["metrics"])


def test_what_cannot_be_evaluated_is_one_line(tiny_model: Callable[..., Denoiser]) -> None:
    model, options = (tiny_model(), 2), SamplingOptions(count=40)
    for data, message in (
        (torch.zeros(9, 8, 8), r"an image is .8, 8., expected .channels, height, width."),
        (torch.zeros(9, 1, 9, 9), "cannot be reframed"),
        (torch.zeros(9, 1, 8, 8, dtype=torch.uint8), "image 0 is torch.uint8: give numbers from -1 to 1"),
        (None, "require the data, or a reference"),
        (
            torch.linspace(0, 1, 576).reshape(9, 1, 8, 8),
            r"from 0 to 1, expected .*: give 2 . images - 1",
        ),
        (torch.linspace(0, 255, 576).reshape(9, 1, 8, 8), r"from 0 to 255, expected .*: give images / 127.5 - 1"),
        ([torch.full((1, 8, 8), value) for value in (0.5, -1.0, torch.nan)], "image 2 has values that are not finite"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(model, data, options, notify=silent)
    with pytest.raises(UserError, match="model 1: guidance 2 has no effect: this model has no guidance input"):
        evaluate(model, torch.zeros(9, 1, 8, 8), SamplingOptions(count=40, guidance=2.0), notify=silent)


class Bright(nn.Module):
    """Images that are as bright as they are told, whatever the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, timestep: Tensor, brightness: Tensor) -> Tensor:
        return self.scale * brightness[:, None, None, None].expand_as(z)


def test_a_network_of_ones_own_is_sampled_under_the_conditions_of_the_examples() -> None:
    """Told what they are its images are the data, with a distance of 0; told half of it they are not."""
    brightness = torch.linspace(-0.9, 0.9, 64)
    images = brightness[:, None, None, None].expand(64, 1, 4, 4).clone()
    denoiser, sampling = Denoiser(Bright(), Cosine(), "sample"), SamplingOptions(count=64, batch=16, steps=2)
    forms: list[tuple[Any, str | None]] = [
        ({"x": images, "brightness": brightness}, None),
        (TensorDataset(images, brightness), "brightness"),
    ]
    for data, label in forms:
        (record,) = evaluate(denoiser, data, sampling, label=label, teacher=(denoiser, 2))
        assert abs(record.quality[0].frechet) < 1e-3
        assert record.rmse == 0
    other: Any = {"x": images, "brightness": brightness / 2}
    (wrong,) = evaluate(denoiser, other, sampling)
    assert wrong.quality[0].frechet > 0.5
    with pytest.raises(UserError, match="label applies only to your own networks"):
        evaluate("student-0004", images, sampling, label="brightness")
    with pytest.raises(UserError, match="missing a required argument: 'brightness'"):
        evaluate(denoiser, images, sampling)


def test_options_of_a_call_are_checked_and_named_as_the_call_has_them(tiny_model: Callable[..., Denoiser]) -> None:
    for wrong, message in (
        ({"precision": "foo"}, "precision is 'foo', expected one of auto, float32, bf16"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"count": 0}, "count is 0, expected a whole number from 1"),
        ({"batch": 2.5}, "batch is 2.5, expected a whole number"),
        ({"count": True}, "count is True"),
    ):
        with pytest.raises(UserError, match=message):
            SamplingOptions(**wrong)  # pyright: ignore[reportArgumentType]
    assert SamplingOptions().count == 2048  # as without any
    data = torch.zeros(9, 1, 8, 8)
    for options, message in (
        (SamplingOptions(count=4), "was trained for any number of steps: set steps, e.g. 256"),
        (SamplingOptions(2, 4, variance=0.5), "variance applies only to method ancestral, not to ddim"),
        (SamplingOptions(2, 4, guidance=-1.0), "model 1: "),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluate(tiny_model(), data, options, notify=silent)
        assert "--" not in str(error.value)


def test_with_a_guidance_scale_each_model_is_loaded_once(
    tiny_model: Callable[..., Denoiser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all are opened before any is sampled, so that one that takes none is found at once."""
    opened, scales = list[Path](), list[float | None]()
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        save(tiny_model(), folder)

    def opening(folder: Path) -> Model:
        opened.append(folder)
        return load(folder)

    def scale(self: Model, guidance: float | None) -> None:
        scales.append(guidance)  # as a model that takes any, without telling its network

    monkeypatch.setattr("progdist.evaluation.evaluate.load", opening)
    monkeypatch.setattr(Model, "scale", scale)
    options, teacher = SamplingOptions(2, 4, guidance=2.0), (folders[0], 2)
    records = evaluate([*folders], torch.randn(9, 1, 8, 8).clamp(-1, 1), options, teacher=teacher, notify=silent)
    assert len(records) == 2
    assert opened == [folders[0], *folders]
    assert scales[:3] == [2, 2, 2]
