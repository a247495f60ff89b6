"""Reference statistics in everyone's layouts: read from files as others write them, written as others read them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from progdist import UserError
from progdist.data.sources import load_images
from progdist.evaluation.features import FeatureSpace, feature_space, features_of
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.statistics import SPATIAL, make_statistics, read_statistics
from progdist.evaluation.metrics import MetricConfig

FEATURES = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))

MU, SIGMA = FEATURES.double().mean(0).numpy(), np.cov(FEATURES.numpy(), rowvar=False)


def write_edm(path: Path) -> None:
    np.savez(path, mu=MU, sigma=SIGMA)


def write_guided_diffusion(path: Path) -> None:
    """As its reference batches are: double precision, beside spatial moments and images."""
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(path, mu=MU, sigma=SIGMA, mu_s=np.ones(3), sigma_s=np.eye(3), arr_0=pixels)


def write_clean_fid(path: Path) -> None:
    np.savez_compressed(path, mu=MU, sigma=SIGMA)


def write_clean_kid(path: Path) -> None:
    np.savez_compressed(path, feats=FEATURES.numpy())


def write_fidelity_moments(path: Path) -> None:
    torch.save({"mu": MU, "sigma": SIGMA}, path)


def write_fidelity_features(path: Path) -> None:
    torch.save(FEATURES, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_edm, "cifar10-32x32.npz"),
        (write_guided_diffusion, "VIRTUAL_imagenet64.npz"),
        (write_clean_fid, "name_clean_custom_na.npz"),
        (write_clean_kid, "name_clean_custom_na_kid.npz"),
        (write_fidelity_moments, "name-inception-v3-compat-stat-fid-2048.pt"),
        (write_fidelity_features, "name-inception-v3-compat-features-2048.pt"),
    ],
)
def test_every_layout_is_read(write: Any, name: str, tmp_path: Path) -> None:  # noqa: ANN401
    write(tmp_path / name)
    found = read_statistics(tmp_path / name, "inception")
    np.testing.assert_allclose(found.moments.mean, MU, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.moments.covariance, SIGMA, rtol=1e-6, atol=1e-7)
    assert (found.features is not None) == (write in (write_clean_kid, write_fidelity_features))


def test_spatial_moments_have_their_own_names(tmp_path: Path) -> None:
    write_guided_diffusion(tmp_path / "a.npz")
    assert read_statistics(tmp_path / "a.npz", SPATIAL).moments.mean.tolist() == [1, 1, 1]


def test_what_is_written_is_what_others_read(tmp_path: Path) -> None:
    """By the very calls that guided-diffusion, EDM, clean-fid and torch-fidelity make of their files."""
    images, space = load_images("digits"), feature_space("digits", (1, 8, 8))
    spatial = FeatureSpace(SPATIAL, lambda images: images.flatten(1)[:, :5])
    inception = FeatureSpace("inception", space.extract)
    features = features_of(space, images, torch.arange(1797))
    expected = moments(features)
    make_statistics([inception, spatial], images, tmp_path / "a.npz", 7)
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_allclose(file["mu"], features.double().mean(0), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(file["sigma"], np.cov(features.numpy(), rowvar=False), rtol=1e-5, atol=1e-7)
        assert (file["mu_s"].shape, file["sigma_s"].shape) == ((5,), (5, 5))
        assert (file["arr_0"].shape, file["arr_0"].dtype) == ((7, 8, 8, 3), np.uint8)
        np.testing.assert_array_equal(file["arr_0"][..., 0], file["arr_0"][..., 2])
    make_statistics([space], images, tmp_path / "a.pt", 0)
    stored = torch.load(tmp_path / "a.pt", weights_only=False)
    assert sorted(stored) == ["mu", "sigma"]
    np.testing.assert_allclose(stored["sigma"], expected.covariance, rtol=1e-10)
    make_statistics([space], images, tmp_path / "a_kid.npz", 0)
    np.testing.assert_array_equal(np.load(tmp_path / "a_kid.npz")["feats"], features)
    for name in ("a.pt", "a_kid.npz"):
        torch.testing.assert_close(read_statistics(tmp_path / name, "digits").moments.mean, expected.mean)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    images, space = load_images("digits"), feature_space("pixels", (1, 8, 8))
    write_edm(tmp_path / "edm.npz")
    np.savez(tmp_path / "crooked.npz", mu=MU, sigma=np.triu(SIGMA))
    np.savez(tmp_path / "negative.npz", mu=MU, sigma=np.diag(np.linspace(-1, 1, len(MU))))
    np.savez(tmp_path / "other.npz", mu=MU, sigma=np.eye(3))
    np.savez(tmp_path / "infinite.npz", mu=MU * np.inf, sigma=SIGMA)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "edm.npz").read_bytes()[:300])
    torch.save({"mu": Path("a")}, tmp_path / "pickle.pt")
    make_statistics([space], images, tmp_path / "pixels.npz", 0)
    for name, message in (
        ("missing.npz", "cannot be read"),
        ("cut.npz", "cannot be read"),
        ("images.npz", "expected an .npz file with mu and sigma"),
        ("pickle.pt", "cannot be read"),
        ("crooked.npz", "not symmetric"),
        ("negative.npz", "negative eigenvalue -1"),
        ("other.npz", r"sigma \(3, 3\), expected"),
        ("infinite.npz", "not finite"),
        ("pixels.npz", "statistics of pixels features, expected digits"),
    ):
        with pytest.raises(UserError, match=message):
            read_statistics(tmp_path / name, "digits")
    for out, spaces, kept, message in (
        ("a.txt", [space], 0, "ends in .txt, expected a name that ends in .npz or .pt"),
        ("a.npz", [space, space], 0, "one feature space"),
        ("a.pt", [space], 3, "only mu and sigma"),
        ("a.npz", [space], 2000, "holds 1797"),
    ):
        with pytest.raises(UserError, match=message):
            make_statistics(spaces, images, tmp_path / out, kept)
    for plan, message in (
        (
            MetricConfig(("pixels",), weights={"inception": Path("a")}),
            "weights inception=a is not used by any metric",
        ),
        (
            MetricConfig(("digits",), ("inception_score",), {"inception": Path("a")}),
            "weights inception=a is not used by any",
        ),
        (MetricConfig(("pixels", "digits", "pixels")), "features pixels is named twice: name it once"),
        (MetricConfig(("pixels",), ("precision_recall",) * 2), "metric precision_recall is named twice"),
        (MetricConfig(("pixels",), references={"digits": Path("a")}), "reference digits=a is not used by any"),
        (MetricConfig(("pixels",), ("inception_score",)), "inception_score requires the features of a classifier"),
        (MetricConfig(("pixels",), ("class_diversity",)), "class_diversity requires the features of a classifier"),
        (MetricConfig(("pixels",), ("clip_score",)), "clip_score requires captions"),
    ):
        with pytest.raises(UserError, match=message):
            plan.open((1, 8, 8), captions=False)
    with pytest.raises(
        UserError, match="reference of digits has 6 features, expected 64 as in the samples: give another"
    ):
        MetricConfig(("digits",), references={"digits": tmp_path / "edm.npz"}).open((1, 8, 8), captions=False)
    metrics = MetricConfig(("pixels",), references={"pixels": tmp_path / "pixels.npz"}).open((1, 8, 8), captions=False)
    with pytest.raises(UserError, match="has 64 features, expected 5 as in the samples"):
        metrics.reference(metrics.spaces[0], torch.randn(5, 5))
