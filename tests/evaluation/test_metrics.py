"""Distances against closed forms, and warnings where there are too few samples."""

import pytest
import torch
from torch import Tensor

from progdist import UserError
from progdist.data.sources import load_images
from progdist.evaluation.features import feature_space
from progdist.evaluation.metrics import frechet_distance, frechet_interval, kernel_distance, quality, root_mean_square


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
    assert frechet_distance(*sets) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-6)


def test_the_interval_holds_the_estimate_and_narrows() -> None:
    data = torch.randn(2000, 5)
    widths = []
    for count in (100, 1600):
        samples = torch.randn(count, 5) + 1
        estimate, low, high = frechet_interval(data, samples, resamples=60, seed=0)
        assert low < frechet_distance(data, samples) == estimate < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_kernel_distance_is_the_unbiased_estimate_with_its_error() -> None:
    """The value is 1000 times the formula itself; the error is what independent draws vary by."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 3 + 1) ** 3

    values, errors = [], []
    for _ in range(40):
        a, b = torch.randn(200, 3).double(), torch.randn(200, 3).double() + 0.5
        within = sum((kernel(x, x).sum() - kernel(x, x).trace()) / (200 * 199) for x in (a, b))
        value, error = kernel_distance(a, b, seed=0)
        assert value == pytest.approx(1000 * float(within - 2 * kernel(a, b).mean()), rel=1e-3)
        values.append(value)
        errors.append(error)
    assert torch.tensor(errors).mean() == pytest.approx(float(torch.tensor(values).std()), rel=0.4)


def test_quality_of_real_and_of_damaged_digits() -> None:
    """Half of the data against the other half is near; noise on it is far, and every number shows it."""
    images, labels = load_images("digits").sample(1797, 0)
    order = torch.randperm(1797)
    space = feature_space("digits", (1, 8, 8))
    data = space(images[order[:900]])
    near = quality(space, data, images[order[900:]], labels[order[900:]], resamples=5)
    noisy = images[order[900:]] + torch.randn(897, 1, 8, 8)
    far = quality(space, data, noisy, labels[order[900:]], resamples=5)
    assert near.frechet < far.frechet / 5
    assert near.kernel < far.kernel / 10
    assert near.agreement is not None
    assert far.agreement is not None
    assert near.agreement > 0.97 > far.agreement
    assert near.warning is None
    assert near.frechet_low <= near.frechet <= near.frechet_high


def test_too_few_samples_are_reported() -> None:
    space = feature_space("pixels", (1, 8, 8))
    few = quality(space, space(torch.randn(50, 1, 8, 8)), torch.randn(50, 1, 8, 8), resamples=3)
    assert few.warning is not None
    assert "use 640 or more" in few.warning
    assert few.agreement is None
    with pytest.raises(UserError, match="at least 2"):
        quality(space, space(torch.randn(50, 1, 8, 8)), torch.randn(1, 1, 8, 8))
    with pytest.raises(UserError, match="not finite"):
        quality(space, space(torch.randn(50, 1, 8, 8)), torch.full((9, 1, 8, 8), torch.nan))


def test_fidelity_is_a_root_mean_square() -> None:
    a = torch.zeros(2, 1, 2, 2)
    assert root_mean_square(a, a) == 0
    assert root_mean_square(a + 0.3, a) == pytest.approx(0.3)
    assert root_mean_square(a + 5, a + 1) == 0  # both are clipped to white
