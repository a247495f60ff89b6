"""A run goes on with the data that it was begun with: other images are told, other labels refused."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.commands import SHORT_EVALUATION, call, refused, succeeds

pytestmark = pytest.mark.slow


def test_data_that_change_under_a_run(tiny_recipe: Path, tmp_path: Path) -> None:
    def run(images: NDArray[np.uint8], labels: list[int]) -> list[object]:
        np.savez(tmp_path / "a.npz", images=images, labels=np.array(labels))
        short = ("--set", "distill.start=2", "--set", "teacher.updates=1", "--set", "distill.updates=1")
        return ["run", tiny_recipe, "--out", tmp_path / "run", "--set", f"data.source=npz:{tmp_path}/a.npz", *short,
                *SHORT_EVALUATION]  # fmt: skip

    def features() -> NDArray[np.float64]:
        return np.load(tmp_path / "run" / "data_features" / "pixels.npz")["mu"]

    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    labels = [0, 1] * 10
    told = succeeds(*run(images, labels)).output
    assert "changed" not in told
    np.testing.assert_allclose(features(), (images.reshape(20, -1) / 127.5 - 1).mean(0), atol=1e-6)
    assert "changed" not in succeeds(*run(images, labels)).output
    again = succeeds(*run(255 - images, labels)).output
    assert "the images of npz:" in again
    assert "have changed since" in again
    assert "made again" in again
    records = (tmp_path / "run" / "data_features" / "pixels").glob("*.safetensors")
    assert len(list(records)) == 1
    refused(
        call(*run(images, [0, 1, 1, 1] * 5)), "the classes or captions of npz:", "images: 20 then, 20 now", "--fresh"
    )
