r"""The Frechet distance of features (Heusel et al. 2017, arXiv 1706.08500; FID where they are Inception's).

    d = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^(1/2) C_b C_a^(1/2))^(1/2)

Its bias is c / n for n samples (Chong & Forsyth 2020, arXiv 1911.07023), so only distances of equally many samples can
be compared. Half as many have twice the bias: the mean over halves less the whole is the whole's own.
"""

import torch
from torch import Tensor

from progdist.evaluation.measures.estimate import NORMAL, centred_interval
from progdist.evaluation.measures.moments import Moments, moments

WIDE = 1024
"""Features beyond which a distance takes seconds: its interval is not resampled."""

SPLITS = 4
"""Random splits into halves over which the bias is averaged, for features that are not WIDE."""


class Frechet:
    """Frechet distances of several sets of samples to one set of data, of whose covariance the root is taken once."""

    def __init__(self, data: Moments) -> None:
        self.data = data
        values, vectors = torch.linalg.eigh(data.covariance)
        self.root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def __call__(self, samples: Moments) -> float:
        """The distance of the samples from the data."""
        squares = torch.linalg.eigvalsh(self.root @ samples.covariance @ self.root)
        spread = self.data.covariance.trace() + samples.covariance.trace() - 2 * squares.clamp(min=0).sqrt().sum()
        return float((self.data.mean - samples.mean).square().sum() + spread)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance of two sets of features, from their moments."""
    return Frechet(a)(b)


def resampled_distances(distance: Frechet, samples: Tensor, *, resamples: int, seed: int) -> Tensor:
    """Distances (R,) of resamples of features (M, D); equally many samples are resampled alike under one seed.

    Beyond WIDE features they are linear: the distance and the mean influence of the samples drawn.
    """
    draw = torch.Generator().manual_seed(seed)
    chosen = (torch.randint(len(samples), (len(samples),), generator=draw) for _ in range(resamples))
    if samples.shape[1] > WIDE:
        influence, whole = frechet_influence(distance.data, samples), distance(moments(samples))
        return torch.stack([whole + influence[rows].mean() for rows in chosen])
    return torch.tensor([distance(moments(samples[rows])) for rows in chosen], dtype=torch.float64)


def frechet_interval(distance: Frechet, samples: Tensor, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """The Frechet distance of features (M, D) to the data, and its 95 % interval over resamples of the samples.

    Beyond WIDE features the interval is 1.96 of `frechet_error` to either side.

    Returns:
        (estimate, low, high).
    """
    estimate = distance(moments(samples))
    if samples.shape[1] > WIDE:
        half = NORMAL * frechet_error(distance.data, samples)
        return estimate, max(0.0, estimate - half), estimate + half
    low, high = centred_interval(estimate, resampled_distances(distance, samples, resamples=resamples, seed=seed))
    return estimate, max(0.0, low), high


def frechet_bias(distance: Frechet, samples: Tensor, *, seed: int) -> float | None:
    """By how much the Frechet distance of features (M, D) is too large for want of samples; None below 4 of them."""
    if len(samples) < 4:
        return None
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(samples), generator=draw) for _ in range(1 if samples.shape[1] > WIDE else SPLITS)]
    halves = [moments(samples[half]) for order in orders for half in order.tensor_split(2)]
    return sum(map(distance, halves)) / len(halves) - distance(moments(samples))


def frechet_error(data: Moments, samples: Tensor) -> float:
    """The standard error of the Frechet distance of features (M, D), by the infinitesimal jackknife.

    It is the root of the mean squared influence over M: two eigendecompositions, whatever the number of samples.
    """
    return float(frechet_influence(data, samples).std(correction=0)) / len(samples) ** 0.5


def frechet_influence(data: Moments, samples: Tensor) -> Tensor:
    r"""By how much each sample of features (M, D) moves the Frechet distance, times M, to first order: (M,).

    The influence of x (Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, chapter 6; the gradient is
    that of the Bures distance) is

        I(x) = 2 (m_b - m_a).(x - m_b) + (x - m_b)' (1 - T) (x - m_b) - its mean,
        T = C_b^(-1/2) (C_b^(1/2) C_a C_b^(1/2))^(1/2) C_b^(-1/2).
    """
    b = samples.double()
    shift, centred = b.mean(0) - data.mean, b - b.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(b) - 1))
    spans = values > values.max() * 1e-10  # beside these no sample varies
    roots, vectors = values[spans].sqrt(), vectors[:, spans]
    inner = roots[:, None] * (vectors.T @ data.covariance @ vectors) * roots
    squares, turn = torch.linalg.eigh(inner)
    middle = (turn * squares.clamp(min=0).sqrt()) @ turn.T
    within = centred @ vectors
    moved = within / roots
    influence = 2 * centred @ shift + within.square().sum(1) - (moved @ middle * moved).sum(1)
    return influence - influence.mean()
