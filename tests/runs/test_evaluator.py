"""What a run measures unasked, and the training images that it keeps beside samples."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from typer.testing import Result

from progdist.data.images import Images
from progdist.data.sources import load_images
from progdist.evaluation.metrics import DEFAULT_METRICS
from progdist.recipes.files import read_recipe
from progdist.runs.evaluator import SHOWN, open_metrics
from progdist.runs.folder import RunFolder
from support.commands import read_records


@pytest.fixture
def digits() -> Images:
    return load_images("digits")


def test_precision_and_coverage_are_measured_where_there_are_enough_images(tiny_recipe: Path, digits: Images) -> None:
    def names(images: Images, *overrides: str) -> tuple[str, ...]:
        return open_metrics(read_recipe(str(tiny_recipe), overrides), images).names

    few = digits.subset(digits.chosen(19, 0))
    assert names(digits) == DEFAULT_METRICS
    assert names(digits, "evaluate.samples=19") == names(few) == ()
    assert names(digits, "evaluate.metrics=[nearest_distance]") == ("nearest_distance",)
    assert names(digits, "evaluate.metrics=[]") == ()


@pytest.mark.slow
def test_records_hold_them(finished: tuple[Path, Result]) -> None:
    for record in read_records(finished[0], "evaluations"):
        for quality in record["quality"]:
            assert set(quality["metrics"]) == {"precision", "recall", "density", "coverage"}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "steps"), [("teacher", 8), ("student", 1)])
def test_below_each_sample_is_its_nearest_training_image(
    finished: tuple[Path, Result], digits: Images, model: str, steps: int
) -> None:
    """As scikit-learn finds it, but for the rounding of samples to bytes."""
    folder = RunFolder(finished[0])
    pairs, grid = (np.asarray(Image.open(each(model, steps))) for each in (folder.nearest, folder.grid))
    assert pairs.shape == (2 * 9 - 1, SHOWN * 9 - 1)
    np.testing.assert_array_equal(pairs[:8], grid[:8])
    samples, shown = (
        np.stack([rows[:, 9 * place : 9 * place + 8].ravel() for place in range(SHOWN)])
        for rows in (pairs[:8], pairs[9:])
    )
    data = np.stack([((image + 1) * 127.5).round().numpy().ravel() for image, _ in digits])
    best = NearestNeighbors(n_neighbors=1).fit(data).kneighbors(samples)[0][:, 0]
    apart = np.linalg.norm(samples.astype(float) - shown, axis=1)
    np.testing.assert_allclose(apart, best, rtol=0.01)
    assert all((image == data).all(1).any() for image in shown)
