"""Feature spaces and the shipped classifiers."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from progdist import UserError
from progdist.data.sources import load_images
from progdist.evaluation.features import feature_space
from progdist.evaluation.networks.classifier import CLASSIFIERS


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_classifiers_are_small(name: str) -> None:
    path = files("progdist") / "evaluation" / "networks" / "classifiers" / f"{name}.safetensors"
    assert len(path.read_bytes()) < 1_000_000
    assert feature_space(name, CLASSIFIERS[name])(torch.zeros(3, *CLASSIFIERS[name])).shape == (3, 64)


def test_the_digits_classifier_knows_digits() -> None:
    images, labels = load_images("digits").sample(1797, 0)
    space = feature_space("digits", (1, 8, 8))
    named = space.labels(space(images))
    assert named is not None
    assert (named == labels).float().mean() > 0.98


def test_pixels_are_averaged_down() -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    features = feature_space("pixels", (3, 32, 32))(images)
    means = images.reshape(2, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(features, means)
    small = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(feature_space("pixels", (1, 8, 8))(small), small.flatten(1))


def test_features_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROGDIST_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="pixels"):
        feature_space("digits", (3, 32, 32))
    with pytest.raises(UserError, match=f"put it at {tmp_path}/weights-inception"):
        feature_space("inception", (3, 32, 32))
    with pytest.raises(UserError, match="unknown"):
        feature_space("resnet", (1, 8, 8))
