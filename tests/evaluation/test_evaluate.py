"""`progdist.evaluate`: folders and denoisers, sources and tensors give the numbers of the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from progdist import Denoiser, UserError, save
from progdist.data.sources import load_images
from progdist.evaluation.evaluate import evaluate
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.metrics import MetricConfig
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
        (torch.zeros(9, 1, 9, 9), "cannot be framed anew"),
        (torch.zeros(9, 1, 8, 8, dtype=torch.uint8), "image 0 is torch.uint8: give numbers from -1 to 1"),
        (None, "give the data, or a reference"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(model, data, options, notify=silent)
    with pytest.raises(UserError, match="model 1: --guidance 2 has no effect: this model has no guidance input"):
        evaluate(model, torch.zeros(9, 1, 8, 8), SamplingOptions(count=40, guidance=2.0), notify=silent)
