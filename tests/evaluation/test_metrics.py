"""One set of samples against the data: every number shows damage, and warnings where there are too few samples."""

import pytest
import torch

from progdist import UserError
from progdist._utils.names import Metric
from progdist.data.sources import load_images
from progdist.evaluation.features import FeatureSpace, feature_space
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.metrics import MetricConfig, Reference, quality
from progdist.evaluation.summary import summarize


def test_quality_of_real_and_of_damaged_digits() -> None:
    """Half of the data against the other half is near; noise on it is far, and every number shows it."""
    images, labels = load_images("digits").sample(1797, 0)
    order = torch.randperm(1797)
    space = feature_space("digits", (1, 8, 8))
    data = space(images[order[:900]])
    near = quality(space, data, summarize([space], images[order[900:]], labels[order[900:]]), resamples=5)
    noisy = images[order[900:]] + torch.randn(897, 1, 8, 8)
    far = quality(space, data, summarize([space], noisy, labels[order[900:]]), resamples=5)
    assert near.frechet < far.frechet / 5
    assert near.kernel is not None
    assert far.kernel is not None
    assert near.kernel < far.kernel / 10
    assert near.agreement is not None
    assert far.agreement is not None
    assert near.agreement > 0.97 > far.agreement
    assert near.warning is None
    assert near.frechet_low <= near.frechet <= near.frechet_high


def test_every_metric_shows_damage_and_needs_no_image() -> None:
    """All from the features that are kept, in a classifier's space and in pixels, in which nothing tells classes."""
    images, _ = load_images("digits").sample(1200, 0)
    for name in ("digits", "pixels"):
        space = feature_space(name, (1, 8, 8))
        data = space(images[:600])
        near, far = (
            quality(
                space, data, summarize([space], made), resamples=2,
                metrics=(
                    "inception_score", "precision_recall", "density_coverage", "nearest_distance", "class_diversity",
                ),
            )
            for made in (images[600:], images[600:] + torch.randn(600, 1, 8, 8))
        )  # fmt: skip
        names = {"precision", "recall", "density", "coverage", "nearest_distance", "nearest_distance_of_data"}
        names |= {"inception_score", "class_diversity"} if name == "digits" else set()
        assert set(near.metrics) == set(far.metrics) == names
        for measured in (near, far):
            assert all(each.low <= each.value <= each.high for each in measured.metrics.values())
        assert all(near.metrics[key].value > far.metrics[key].value for key in ("precision", "density", "coverage"))
        assert near.metrics["nearest_distance"].value < far.metrics["nearest_distance"].value


def test_copies_and_one_image_of_each_class_are_told_from_new_images() -> None:
    """Copies of the data are next to nothing apart from them, and one image of each class has no diversity."""
    images, labels = load_images("digits").at(torch.randperm(1797))  # their order is by writer
    space = feature_space("digits", (1, 8, 8))
    data, firsts = space(images[:600]), torch.stack([images[:600][labels[:600] == each][0] for each in range(10)])
    names: tuple[Metric, ...] = ("nearest_distance", "class_diversity")
    new, copied, one = (
        quality(space, data, summarize([space], made), resamples=2, metrics=names).metrics
        for made in (images[600:], images[:300] + 0.01 * torch.randn(300, 1, 8, 8), firsts.repeat(30, 1, 1, 1))
    )
    between = new["nearest_distance_of_data"].value
    assert new["nearest_distance"].value == pytest.approx(between, rel=0.1)
    assert copied["nearest_distance"].value < 0.1 * between
    assert new["class_diversity"].value == pytest.approx(1, abs=0.15)
    assert copied["class_diversity"].value == pytest.approx(1, abs=0.15)
    assert one["class_diversity"].value < 1e-6


@pytest.mark.parametrize(
    "metric", ["precision_recall", "density_coverage", "inception_score", "nearest_distance", "class_diversity"]
)
def test_which_of_samples_and_data_are_too_few_is_said(metric: Metric) -> None:
    space = feature_space("digits", (1, 8, 8))
    images = torch.rand(40, 1, 8, 8)
    for samples, data, message in (
        (9, 30, f"{metric} requires at least 20 samples, got 9"),
        (30, 9, f"{metric} requires at least 20 images of the data, got 9"),
        (1, 30, "the distance requires at least 2 samples, got 1"),
        (30, 1, "the distance requires at least 2 images of the data, got 1"),
    ):
        with pytest.raises(UserError, match=message):
            quality(space, space(images[:data]), summarize([space], images[:samples]), metrics=(metric,))


def test_moments_alone_give_the_frechet_distance_alone() -> None:
    images, _ = load_images("digits").sample(600, 0)
    space = feature_space("digits", (1, 8, 8))
    data, samples = space(images[:300]), summarize([space], images[300:])
    with_data = quality(space, data, samples, resamples=2)
    alone = quality(space, Reference(None, Frechet(moments(data))), samples, resamples=2)
    assert alone.frechet == with_data.frechet
    assert alone.kernel is None
    with pytest.raises(UserError, match="give the data, too"):
        quality(space, Reference(None, Frechet(moments(data))), samples, metrics=("density_coverage",), resamples=2)


def test_published_counts_are_named() -> None:
    """A Frechet distance in Inception's features says what it lacks to be compared with published ones."""
    space = FeatureSpace("inception", lambda images: images.flatten(1), warning="other weights")
    data, images = torch.rand(2, 900, 1, 8, 8) * 2 - 1
    found = quality(space, space(data), summarize([space], images), resamples=2)
    assert found.warning is not None
    assert found.frechet_bias is not None
    assert found.warning.startswith("other weights; published FIDs use 50,000 samples, and that of 900 is about")
    assert found.frechet == pytest.approx(2 * found.frechet_bias, rel=0.4)  # nothing but bias, of the data, too


def test_too_few_samples_are_reported() -> None:
    space = feature_space("pixels", (1, 8, 8))
    few = quality(space, space(torch.randn(50, 1, 8, 8)), summarize([space], torch.randn(50, 1, 8, 8)), resamples=3)
    assert few.warning is not None
    assert "use 640 or more" in few.warning
    assert few.too_few
    assert few.agreement is None
    with pytest.raises(UserError, match="at least 2"):
        quality(space, space(torch.randn(50, 1, 8, 8)), summarize([space], torch.randn(1, 1, 8, 8)))
    with pytest.raises(UserError, match="not finite"):
        quality(space, space(torch.randn(50, 1, 8, 8)), summarize([space], torch.full((9, 1, 8, 8), torch.nan)))


def test_a_distance_that_is_mostly_bias_is_said_to_be() -> None:
    """Of one distribution all of it is bias; at a distance of 64 x 0.3^2 it is little."""
    space, draw = feature_space("pixels", (1, 8, 8)), torch.Generator().manual_seed(0)
    data = space(torch.randn(4000, 1, 8, 8, generator=draw))
    images = torch.randn(700, 1, 8, 8, generator=draw)
    same, far = (quality(space, data, summarize([space], each), resamples=2) for each in (images, images + 0.6))
    assert same.warning is not None
    assert "in pixels features" in same.warning
    assert "is the bias of 700 samples, which its interval contains, too: use more" in same.warning
    assert (same.too_few, far.too_few, far.warning) == (True, False, None)


def test_fidelity_is_a_root_mean_square() -> None:
    a, space = torch.zeros(2, 1, 2, 2), feature_space("pixels", (1, 2, 2))
    assert summarize([space], a, reference=a).rmse == 0
    assert summarize([space], a + 0.3, reference=a).rmse == pytest.approx(0.3)
    assert summarize([space], a + 5, reference=a + 1).rmse == 0  # both are clipped to white


@pytest.mark.parametrize("names", [{"features": "pixels"}, {"metrics": "prdc"}])
def test_a_name_that_is_no_list_of_names_is_refused(names: dict[str, str]) -> None:
    (name,) = names.values()
    with pytest.raises(UserError, match=rf"is '{name}', expected names in a list: \['{name}'\]"):
        MetricConfig(**names)  # pyright: ignore[reportArgumentType]
