"""Models side by side: every distance is resampled once, for its interval and for the ratio."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from progdist import Denoiser, save
from progdist.data.sources import load_images
from progdist.evaluation.compare import compare
from progdist.evaluation.evaluate import evaluations
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.measures import frechet
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.metrics import MetricConfig

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
