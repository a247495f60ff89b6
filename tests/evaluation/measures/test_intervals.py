"""Intervals and biases against what independent draws vary by."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.evaluation.measures.diversity import class_diversity
from progdist.evaluation.measures.estimate import NORMAL, STUDENT_10, Estimate
from progdist.evaluation.measures.frechet import (
    Frechet,
    frechet_bias,
    frechet_error,
    frechet_influence,
    resampled_frechet,
)
from progdist.evaluation.measures.kernel import Pairs, Spread, kernel_distance
from progdist.evaluation.measures.moments import moments, running_moments
from progdist.evaluation.measures.neighbors import density_coverage, nearest_distance, precision_recall
from progdist.evaluation.measures.scores import clip_score, inception_score


def with_moments(mean: Tensor, covariance: Tensor, count: int = 500) -> Tensor:
    """Vectors whose sample mean and covariance are exactly these."""
    x = torch.randn(count, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_frechet_distance_of_gaussians() -> None:
    """Commuting covariances: |m_a - m_b|^2 + sum (sqrt a_i - sqrt b_i)^2."""
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    a, b = torch.tensor([4.0, 1, 0.25, 2]).double(), torch.tensor([1.0, 1, 4, 0.5]).double()
    means = torch.randn(2, 4, dtype=torch.float64)
    sets = [with_moments(mean, turn @ torch.diag(spread) @ turn.T) for mean, spread in zip(means, (a, b), strict=True)]
    expected = (means[0] - means[1]).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    first, second = (moments(each) for each in sets)
    assert Frechet(first)(second) == pytest.approx(float(expected), rel=1e-6)
    assert Frechet(first)(first) == pytest.approx(0, abs=1e-6)


def test_moments_in_batches_are_those_of_all_at_once() -> None:
    x = 1e4 + torch.randn(1000, 3, dtype=torch.float64)  # far from 0, where sums of squares would lose their digits
    parts = running_moments(x.split([1, 7, 400, 592]))
    torch.testing.assert_close(parts.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.covariance, x.T.cov(), rtol=1e-9, atol=1e-9)
    assert parts.count == 1000


def test_the_interval_holds_the_estimate_and_narrows() -> None:
    distance = Frechet(moments(torch.randn(2000, 5)))
    widths = []
    for count in (100, 1600):
        samples = torch.randn(count, 5) + 1
        found = resampled_frechet(distance, samples, resamples=60, seed=0).estimate
        assert found.low < distance(moments(samples)) == found.value < found.high
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_the_wide_error_is_what_independent_samples_vary_by(shift: float) -> None:
    """The infinitesimal jackknife's error against the deviation over fresh sets of samples."""
    shape = torch.randn(6, 6)
    data = moments(torch.randn(4000, 6) @ shape)
    draws = [torch.randn(400, 6) @ shape * (1 + shift) + shift for _ in range(60)]
    spread = torch.tensor([Frechet(data)(moments(draw)) for draw in draws]).std()
    errors = torch.tensor([frechet_error(frechet_influence(data, draw)) for draw in draws[:10]])
    if shift:  # at distance 0 the first order vanishes, and the distance is its bias
        assert errors.mean() == pytest.approx(float(spread), rel=0.3)
    else:
        assert errors.mean() < 0.2


def test_fewer_samples_than_features_have_an_error() -> None:
    data, few = moments(torch.randn(300, 40)), torch.randn(30, 40) + 1
    found = resampled_frechet(Frechet(data), few, resamples=2, seed=0).estimate
    assert found.low < found.high
    assert 0 < frechet_error(frechet_influence(data, few)) < 10


def test_the_bias_is_that_of_few_samples() -> None:
    """The mean distance of sets of 200 is the distance of very many and the bias that such a set tells of itself."""
    shape, distance = torch.randn(8, 8), Frechet(moments(torch.randn(20_000, 8)))
    many = distance(moments(torch.randn(200_000, 8) @ shape * 0.3))
    sets = [torch.randn(200, 8) @ shape * 0.3 for _ in range(40)]
    bias = sum(distance(moments(each)) for each in sets) / len(sets) - many
    told = sum(frechet_bias(distance, each, seed=0) or 0.0 for each in sets) / len(sets)
    assert bias > 0
    assert told == pytest.approx(bias, rel=0.35)
    assert frechet_bias(distance, sets[0][:3], seed=0) is None


def mean_discrepancy(a: Tensor, b: Tensor) -> float:
    """1000 times the formula itself, over all pairs."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = sum((kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1)) for x in (a, b))
    return 1000 * float(within - 2 * kernel(a, b).mean())


SHAPES = {"same": (1.0, 0.0), "near": (0.85, 0.03), "far": (0.7, 0.3)}  # deviation and mean of samples


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("counts", [(150, 150), (600, 100)])
def test_the_kernel_distances_error_is_what_independent_draws_vary_by(counts: tuple[int, int], shape: str) -> None:
    """Over 150 pairs of sets: as wide as they vary, and holding their mean about 95 times in 100.

    Where both are of one distribution the error is a sixth too large: a variance that is 0 is not estimated below 0.
    """
    draw, found = torch.Generator().manual_seed(0), []
    (count, few), (deviation, mean) = counts, SHAPES[shape]
    for _ in range(150):
        a, b = torch.randn(count, 8, generator=draw), deviation * torch.randn(few, 8, generator=draw) + mean
        value, error = kernel_distance(a, b, seed=0)
        if count == few:
            assert value == pytest.approx(mean_discrepancy(a.double(), b.double()), rel=1e-3, abs=1e-3)
        found.append((value, error))
    values, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.3 if shape != "same" else 0.4)
    assert 0.9 <= float(((values - values.mean()).abs() <= NORMAL * errors).double().mean()) <= 1


def test_the_kernel_distances_error_of_large_data_is_what_samples_vary_by() -> None:
    """Data that stay the same hardly add to it where they are many: the interval is not twice too wide."""
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(1500, 8, generator=draw)
    found = [kernel_distance(data, 0.9 * torch.randn(150, 8, generator=draw), seed=k) for k in range(40)]
    values, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.35)


def test_the_spread_of_a_kernel_of_known_moments() -> None:
    """Of one number x = -1 or 1 every part of the variance is known.

    k(x, y) = (xy + 1)^3 = 4 + 4 xy, so that with E x = 0 k less its means is 4 xy, of variance 16, and the means are
    constant: V(n, m) = 32 / (n (n - 1)) + 32 / (m (m - 1)) + 64 / (n m). Where E y = c, the mean of k over y is
    4 + 4 c x, and that over x is 4: u = -4 c x, of variance 16 c^2, and v = 4 c y - c of variance 16 c^2 (1 - c^2).
    """
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(1000)[:, None]
    even = Spread.of(Pairs.of(signs), Pairs.of(signs))
    assert even.means == pytest.approx((0, 0), abs=0.02)
    assert (*even.within, even.between) == pytest.approx((16, 16, 16), rel=2e-3)
    assert even.variance(10, 20) == pytest.approx(32 / 90 + 32 / 380 + 64 / 200, rel=5e-3)
    c = 0.5
    others = torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64).repeat(500)[:, None]
    uneven = Spread.of(Pairs.of(signs), Pairs.of(others))
    assert uneven.means == pytest.approx((16 * c**2, 16 * c**2 * (1 - c**2)), rel=0.02)
    assert uneven.within == pytest.approx((16, 16 * (1 - c**2) ** 2), rel=2e-3)
    assert uneven.between == pytest.approx(16 * (1 - c**2), rel=2e-3)


@pytest.mark.parametrize(
    ("measure", "names"), [(precision_recall, ("precision", "recall")), (density_coverage, ("density", "coverage"))]
)
def test_errors_of_neighbors_are_what_independent_samples_vary_by(
    measure: Callable[..., dict[str, Estimate]], names: tuple[str, str]
) -> None:
    data = torch.randn(300, 4)
    found = [measure(data, 0.9 * torch.randn(200, 4) + 0.4, seed=0) for _ in range(40)]
    for name in names:
        values = torch.tensor([each[name].value for each in found])
        widths = torch.tensor([each[name].high - each[name].low for each in found]) / (2 * STUDENT_10)
        assert widths.mean() == pytest.approx(float(values.std()), rel=0.5)


def test_errors_of_nearest_distances_are_what_independent_sets_vary_by() -> None:
    found = [nearest_distance(torch.randn(400, 6), 0.9 * torch.randn(300, 6) + 0.4, seed=0) for _ in range(40)]
    for name in ("nearest_distance", "nearest_distance_of_data"):
        values = torch.tensor([each[name].value for each in found])
        widths = torch.tensor([each[name].high - each[name].low for each in found]) / (2 * STUDENT_10)
        assert widths.mean() == pytest.approx(float(values.std()), rel=0.5)


def test_nearest_distances_of_known_sets() -> None:
    """The data's own distribution is as near to them as they are to each other, and copies are nowhere else."""
    data, same = torch.randn(2, 600, 4)
    own = nearest_distance(data, same, seed=0)
    assert own["nearest_distance"].value == pytest.approx(own["nearest_distance_of_data"].value, rel=0.1)
    assert nearest_distance(data, data[:300], seed=0)["nearest_distance"].value == pytest.approx(0, abs=1e-6)
    line = torch.arange(100.0)[:, None]
    assert nearest_distance(line, line[:50] + 0.25, seed=0)["nearest_distance"].value == pytest.approx(0.25)
    assert nearest_distance(line, line, seed=0)["nearest_distance_of_data"].value == pytest.approx(1)


def in_classes(count: int, deviation: float = 1.0) -> tuple[Tensor, Tensor]:
    """Vectors about the far apart means of three classes, and their classes."""
    classes = torch.arange(count) % 3
    return deviation * torch.randn(count, 5) + 100 * classes[:, None], classes


def test_class_diversity_of_known_sets() -> None:
    """The square of the deviation within classes, whatever their means; one image of each class has none."""
    data, classes = in_classes(3000)

    def diversity(samples: Tensor, own: Tensor) -> float:
        return class_diversity(data, samples, classes, own, seed=0)["class_diversity"].value

    assert diversity(*in_classes(3000)) == pytest.approx(1, rel=0.06)
    assert diversity(*in_classes(3000, 0.5)) == pytest.approx(0.25, rel=0.06)
    kept = classes != 1  # a class that is not made adds nothing
    assert diversity(data[kept], classes[kept]) == pytest.approx(2 / 3, rel=0.06)
    assert diversity(data[:3].repeat(30, 1), classes[:3].repeat(30)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="two different images"):
        class_diversity(data[:3], data, classes[:3], classes, seed=0)


def test_the_error_of_class_diversity_is_what_independent_samples_vary_by() -> None:
    data, classes = in_classes(600)
    sets = (in_classes(300, 0.8) for _ in range(40))
    found = [class_diversity(data, samples, classes, own, seed=0) for samples, own in sets]
    values = torch.tensor([each["class_diversity"].value for each in found])
    ends = [(each["class_diversity"].low, each["class_diversity"].high) for each in found]
    widths = torch.tensor([high - low for low, high in ends]) / (2 * STUDENT_10)
    assert widths.mean() == pytest.approx(float(values.std()), rel=0.5)


def test_neighbors_of_known_sets() -> None:
    """The data's own distribution; a part of it is precise and recalls little; far away there is nothing."""
    data, same = torch.randn(2, 600, 2)
    own = precision_recall(data, same, seed=0) | density_coverage(data, same, seed=0)
    assert own["density"].value == pytest.approx(1, abs=0.08)
    assert own["coverage"].value == pytest.approx(1 - 2**-5, abs=0.03)
    part = precision_recall(data, 0.1 * same, seed=0)
    assert part["precision"].value > 0.97
    assert part["recall"].value < 0.1
    far = precision_recall(data, same + 50, seed=0) | density_coverage(data, same + 50, seed=0)
    assert {found.value for found in far.values()} == {0.0}


def test_inception_score_of_known_logits() -> None:
    """Certain of one of 5 classes each, equally often: 5. The same for all: 1."""
    certain = 100 * torch.eye(5)[torch.arange(1000) % 5]
    assert inception_score(certain, seed=0)["inception_score"].value == pytest.approx(5, rel=0.02)
    assert inception_score(certain[:1].expand(100, 5), seed=0)["inception_score"].value == pytest.approx(1)


def test_clip_score_is_a_mean_of_cosines() -> None:
    images = torch.tensor([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
    captions = torch.tensor([[2.0, 0], [0, 1], [0, 5], [1, 0]])
    scores = torch.tensor([100, 100, 100 * 0.5**0.5, 0])
    found = clip_score(images, captions)
    assert found.value == pytest.approx(float(scores.mean()))
    assert found.value - found.low == pytest.approx(NORMAL * float(scores.std()) / 2)
