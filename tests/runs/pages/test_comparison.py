"""The page of `progdist compare`: a person reads the verdicts at any width, and large samples do not swell it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from progdist.evaluation.compare import Comparison
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.measures.estimate import Estimate
from progdist.runs.pages.report import grid, write_comparison
from progdist.runs.pages.slides import LARGEST
from support.records import evaluation, quality

QUALITY = quality(frechet_bias=4.3, metrics={"recall": Estimate(0.02, 0.0, 0.1)}, warning="few samples")
IMAGES = torch.zeros(64, 1, 8, 8)
FIRST = Comparison("a", evaluation("runs/a", 4, quality=(QUALITY,)), QUALITY, IMAGES)
SECOND = Comparison(
    "b",
    evaluation(f"runs/{'long-' * 12}b", 1, quality=(QUALITY,)),
    QUALITY,
    IMAGES,
    "a",
    Estimate(0.97, 0.94, 0.99),
    "better",
)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 360])
def test_verdicts_are_seen_without_moving_the_page(browse: Any, tmp_path: Path, width: int) -> None:  # noqa: ANN401
    page = tmp_path / "page.html"
    write_comparison(page, [FIRST, SECOND], SamplingOptions(method="dpmpp"))
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
    large = grid(torch.zeros(64, 3, 256, 256))
    assert max(large["width"], large["height"]) == LARGEST
    assert grid(IMAGES)["width"] == 8 * 9 - 1
