"""Models side by side: every distance is resampled once, for its interval and for the ratio."""

import json
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from progdist import Denoiser, save
from progdist.data.sources import load_images
from progdist.evaluation.compare import Comparison, compare, compared_with_the_first
from progdist.evaluation.evaluate import evaluations
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.measures import frechet
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import Frechet, Resampled
from progdist.evaluation.metrics import MetricConfig
from support.records import evaluation, quality

COUNT, RESAMPLES = 16, 100
SILENT: Callable[[str], None] = lambda text: None  # noqa: E731


@pytest.mark.parametrize("wide", [False, True])
def test_every_distance_is_resampled_once(
    wide: bool, tiny_model: Callable[..., Denoiser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many distances as there are resamples; intervals are those of `progdist evaluate`, which draws as many."""
    model, images = tmp_path / "model", load_images("digits")
    save(tiny_model(), model)
    if wide:
        for module in ("progdist.evaluation.measures.frechet", "progdist.evaluation.metrics"):
            monkeypatch.setattr(f"{module}.WIDE", 32)
    calls: dict[str, int] = {"distance": 0, "influence": 0}
    plain, influence = Frechet.__call__, frechet.frechet_influence

    def counted(name: str, called: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:  # noqa: ANN401
            calls[name] += 1
            return called(*arguments)

        return call

    monkeypatch.setattr(Frechet, "__call__", counted("distance", plain))
    monkeypatch.setattr(frechet, "frechet_influence", counted("influence", influence))
    options, pixels = SamplingOptions(count=COUNT), MetricConfig(("pixels",))
    words = [f"{model}@1", f"{model}@2"]
    compared = compare(words, images, options, pixels, resamples=RESAMPLES, notify=SILENT)
    whole_and_bias = 1 + 1 + (2 if wide else 2 * frechet.SPLITS)
    assert calls["distance"] == 2 * (whole_and_bias + (0 if wide else RESAMPLES))
    assert calls["influence"] == (2 if wide else 0)
    for steps in (1, 2):
        (alone,) = evaluations([(model, steps)], images, options, pixels, teacher=None, notify=SILENT)
        (beside,) = (each for each in compared if each.record.steps == steps)
        for name in ("frechet", "frechet_low", "frechet_high", "frechet_bias", "kernel", "interval"):
            assert getattr(beside.quality, name) == getattr(alone.quality[0], name)


@pytest.mark.parametrize(
    ("few", "verdict"), [((False, False), "worse"), ((True, False), "undecided"), ((False, True), "undecided")]
)
def test_there_is_no_verdict_where_samples_of_either_are_too_few(few: tuple[bool, bool], verdict: str) -> None:
    """Whatever their ratio says: the second model is four times as far away."""
    draws, one = torch.randn(100, dtype=torch.float64) / 100, Estimate(1.0, 0.9, 1.1)
    near, far = Resampled(one, 1 + draws), Resampled(Estimate(4.0, 3.9, 4.1), 4 + draws)
    pair = [
        Comparison(label, evaluation(label, 4, quality=(each,)), each, torch.zeros(0))
        for label, each in (
            ("a", quality(resampled=near, too_few=few[0])),
            ("b", quality(resampled=far, too_few=few[1])),
        )
    ]
    first, second = compared_with_the_first(pair, [True, False])
    assert first.verdict is None
    assert second.ratio is not None
    assert second.ratio.low > 1
    assert second.verdict == verdict


def test_a_ratio_that_may_be_anything_is_json() -> None:
    """JSON has no infinity: an end that is one is null."""
    each = quality()
    one = Comparison("b", evaluation("b", 4, quality=(each,)), each, torch.zeros(0), "a", Estimate(inf, 0.0, inf))
    assert json.loads(json.dumps(one.to_json(), allow_nan=False))["ratio"] == {"value": None, "low": 0.0, "high": None}
