"""Image transforms, labels and samples of a data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from progdist import UserError
from progdist.data.images import ImageTransform
from progdist.data.sources import load_images


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 12, 12), dtype=np.uint8)


def test_area_resampling_is_a_mean_of_the_centre_square(tmp_path: Path) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (8, 12), dtype=np.uint8)
    framed = ImageTransform(size=4)(Image.fromarray(wide))
    means = wide[:, 2:10].reshape(4, 2, 4, 2).mean((1, 3)) / 127.5 - 1
    np.testing.assert_allclose(framed[0].numpy(), means, atol=1 / 127)
    smooth = ImageTransform(size=4, resample="bilinear")(Image.fromarray(wide))
    assert not torch.equal(framed, smooth)
    assert ImageTransform(channels=3)(Image.fromarray(wide)).shape == (3, 8, 12)
    assert ImageTransform()(Image.fromarray(wide).convert("RGBA")).shape == (3, 8, 12)


@pytest.mark.parametrize("count", [100, 1797, 5000])
def test_spread_labels_have_the_datas_shares(count: int) -> None:
    images = load_images("digits")
    assert images.labels is not None
    shares = [
        labels.bincount(minlength=10) / len(labels) for labels in (images.labels, images.stratified_labels(count))
    ]
    torch.testing.assert_close(*shares, rtol=0, atol=0.011)
    assert len(images.stratified_labels(count)[:20].unique()) > 4


def test_sampling_is_without_repeats() -> None:
    images = load_images("digits")
    x, labels = images.sample(1797, seed=3)
    assert len(x.flatten(1).unique(dim=0)) > 1700
    assert torch.equal(labels, torch.from_numpy(load_digits().target))  # pyright: ignore
    assert not torch.equal(images.sample(50, seed=1)[0], images.sample(50, seed=2)[0])


def test_sixteen_bits_and_narrow_images(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]] * 4, np.uint16)).save(tmp_path / "1.png")
    x = load_images(f"folder:{tmp_path}")[0][0]
    assert x.shape == (1, 4, 3)
    torch.testing.assert_close((x[0, 0] + 1) * 127.5, torch.tensor([0.0, 100, 255]))


def test_images_of_two_sizes_need_a_size(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels[0]).save(tmp_path / "1.png")
    Image.fromarray(pixels[0][:8]).save(tmp_path / "2.png")
    images = load_images(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="set a size"):
        images[1]
    assert load_images(f"folder:{tmp_path}", size=8)[1][0].shape == (1, 8, 8)
