"""Feature spaces and the shipped classifiers."""

from importlib.resources import files

import pytest
import torch

from progdist import UserError
from progdist.data.sources import load_images
from progdist.evaluation.features import CLASSIFIERS, feature_space


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_classifiers_are_small(name: str) -> None:
    path = files("progdist") / "evaluation" / "classifiers" / f"{name}.safetensors"
    assert len(path.read_bytes()) < 1_000_000
    assert feature_space(name, CLASSIFIERS[name])(torch.zeros(3, *CLASSIFIERS[name])).shape == (3, 64)


def test_the_digits_classifier_knows_digits() -> None:
    images, labels = load_images("digits").sample(1797, 0)
    named = feature_space("digits", (1, 8, 8)).labels(images)
    assert named is not None
    assert (named == labels).float().mean() > 0.98


def test_pixels_are_averaged_down() -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    features = feature_space("pixels", (3, 32, 32))(images)
    means = images.reshape(2, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(features, means)
    small = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(feature_space("pixels", (1, 8, 8))(small), small.flatten(1))


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="pixels"):
        feature_space("digits", (3, 32, 32))
    with pytest.raises(UserError, match=r"progdist\[inception\]"):
        feature_space("inception", (3, 32, 32))
    with pytest.raises(UserError, match="unknown"):
        feature_space("resnet", (1, 8, 8))
