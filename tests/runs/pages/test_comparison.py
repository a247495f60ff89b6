"""The page of `progdist compare`: a person reads the verdicts at any width, and large samples do not swell it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from progdist.evaluation.generate import SamplingOptions
from progdist.runs.pages.slides import LARGEST
from progdist.runs.studies.comparison import _grid, _page

MEASURED: dict[str, Any] = {
    "seconds_per_image": 0.01, "clip_score": None, "features": "pixels", "samples": 64, "frechet": 41.5,
    "frechet_low": 40.2, "frechet_high": 42.8, "kernel": 1708.2, "kernel_spread": 100.6, "agreement": None,
    "frechet_bias": 4.3, "metrics": {"recall": {"value": 0.02, "low": 0.0, "high": 0.1}},
}  # fmt: skip
RATIO = {"value": 0.97, "low": 0.94, "high": 0.99}
FIRST = {"label": "a", "model": "runs/a", "steps": 4, "against": None, "ratio": None, "verdict": None}
SECOND = {"label": "b", "model": f"runs/{'long-' * 12}b", "steps": 1, "against": "a", "ratio": RATIO}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 360])
def test_verdicts_are_seen_without_moving_the_page(browse: Any, tmp_path: Path, width: int) -> None:  # noqa: ANN401
    records = [MEASURED | FIRST, MEASURED | SECOND | {"verdict": "better"}]
    grids = [_grid(torch.zeros(64, 1, 8, 8))] * 2
    page = tmp_path / "page.html"
    page.write_text(_page(records, grids, ["few samples"], SamplingOptions(None, 64, None, 0, "dpmpp")))
    browser = browse(page.as_uri(), width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    (verdict,) = browser.find_elements("css selector", ".bars .verdict")
    assert verdict.text == "better"
    assert verdict.location["x"] + verdict.size["width"] <= width
    said = browser.find_element("tag name", "body").text
    assert "few samples" in said
    assert "by DPM-Solver++" in said


def test_large_samples_are_reduced() -> None:
    """Eight images of 256 in a row are more than a page shows."""
    grid = _grid(torch.zeros(64, 3, 256, 256))
    assert max(grid["width"], grid["height"]) == LARGEST
    assert _grid(torch.zeros(64, 1, 8, 8))["width"] == 8 * 9 - 1
