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
    image = CLASSIFIERS[name].image
    assert feature_space(name, image)(torch.zeros(3, *image)).shape == (3, 64)


@pytest.mark.parametrize("name", ["digits", "digits_residual"])
def test_the_digits_classifiers_know_digits(name: str) -> None:
    images, labels = load_images("digits").sample(1797, 0)
    space = feature_space(name, (1, 8, 8))
    features = space(images)
    named = space.labels(features)
    assert named is not None
    assert (named == labels).float().mean() > 0.98
    assert features.square().mean() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_the_second_classifier_sees_otherwise(name: str) -> None:
    """No linear map of one's features gives the other's: what it leaves is more than a tenth of their variance."""
    images = torch.rand(2000, *CLASSIFIERS[name].image) * 2 - 1
    a, b = (feature_space(each, CLASSIFIERS[name].image)(images).double() for each in (name, f"{name}_residual"))
    a, b = torch.cat([a, torch.ones(len(a), 1)], 1), b - b.mean(0)
    left = b - a @ torch.linalg.lstsq(a, b).solution
    assert left.square().sum() > 0.1 * b.square().sum()


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
