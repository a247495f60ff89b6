"""Models side by side: every distance is resampled once, for its interval and for the ratio."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from progdist import Denoiser, save
from progdist.data.sources import load_images
from progdist.evaluation.compare import compare
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.measures import frechet
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.measures.plan import Plan
from progdist.runs.studies.comparison import comparison

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
    options, plan = SamplingOptions(None, COUNT, None, 0), Plan(("pixels",))
    words, page = [f"{model}@1", f"{model}@2"], tmp_path / "page.html"
    records = comparison(words, images, options, plan, RESAMPLES, page, SILENT)
    whole_and_bias = 1 + 1 + (2 if wide else 2 * frechet.SPLITS)
    assert calls["distance"] == 2 * (whole_and_bias + (0 if wide else RESAMPLES))
    assert calls["influence"] == (2 if wide else 0)
    for steps in (1, 2):
        alone = compare([model], images, SamplingOptions(steps, COUNT, None, 0), plan, None, SILENT)
        for record, other in zip((r for r in records if r["steps"] == steps), alone, strict=True):
            for name in ("frechet", "frechet_low", "frechet_high", "frechet_bias", "kernel", "interval"):
                assert record[name] == other[name]
