r"""The Frechet distance of features (Heusel et al. 2017, arXiv 1706.08500; FID if they are Inception's).

    d = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^(1/2) C_b C_a^(1/2))^(1/2)

Its bias is c / n for n samples (Chong & Forsyth 2020, arXiv 1911.07023), so only distances of equally many samples can
be compared. Half as many have twice the bias: the mean over halves minus the whole is the bias of the whole.

Models that start from the same noise make paired samples. Resampling the same rows of both (Efron & Tibshirani 1993, An
Introduction to the Bootstrap, chapter 8) keeps the pairs, so the interval of the ratio of their distances is narrower
than two separate intervals suggest. Both have about the same bias, which draws the ratio towards 1. Resamples have
twice the bias, so the draws d_r of each model count by their difference from their mean: to first order

    log ratio_r = log ratio + (d_r - mean d) / d of the one - the same of the other

whose deviation s gives the interval ratio exp(+-1.96 s): percentiles of so few draws would be too narrow.
"""

from dataclasses import dataclass
from math import exp, inf

import torch
from torch import Tensor

from progdist.evaluation.measures.estimate import NORMAL, Estimate, centred_interval
from progdist.evaluation.measures.moments import Moments, moments

WIDE = 1024  # with more features a distance takes seconds, so its interval is not resampled
NOTHING_SAID = 50.0  # deviation of the log of a ratio from which its interval spans all numbers
SPLITS = 4  # random splits into halves to average the bias over, for features that are not WIDE


class Frechet:
    """Frechet distances of sets of samples to one set of data, whose covariance root is computed once."""

    def __init__(self, data: Moments) -> None:
        self.data = data
        values, vectors = torch.linalg.eigh(data.covariance)
        self.root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def __call__(self, samples: Moments) -> float:
        """The distance of the samples from the data."""
        squares = torch.linalg.eigvalsh(self.root @ samples.covariance @ self.root)
        spread = self.data.covariance.trace() + samples.covariance.trace() - 2 * squares.clamp(min=0).sqrt().sum()
        return float((self.data.mean - samples.mean).square().sum() + spread)


@dataclass(frozen=True)
class Resampled:
    """A Frechet distance and its resamples: the same rows in the same order for equally many samples."""

    estimate: Estimate  # the distance itself with its 95 % interval
    draws: Tensor  # the distances of the resamples, float64 (R,)


def resampled_frechet(distance: Frechet, samples: Tensor, *, resamples: int, seed: int) -> Resampled:
    """The Frechet distance of features (M, D) to the data, its resamples and their 95 % interval.

    Equally many samples are resampled alike with the same seed. Beyond WIDE features the draws are linear: the distance
    and the mean influence of the samples drawn; the interval is then 1.96 of `frechet_error` to either side.
    """
    whole, draw = distance(moments(samples)), torch.Generator().manual_seed(seed)
    chosen = (torch.randint(len(samples), (len(samples),), generator=draw) for _ in range(resamples))
    if samples.shape[1] > WIDE:
        influence = frechet_influence(distance.data, samples)
        draws = torch.stack([whole + influence[rows].mean() for rows in chosen])
        return Resampled(Estimate.normal(whole, frechet_error(influence)), draws)
    draws = torch.tensor([distance(moments(samples[rows])) for rows in chosen], dtype=torch.float64)
    low, high = centred_interval(whole, draws)
    return Resampled(Estimate(whole, max(0.0, low), high), draws)


def frechet_bias(distance: Frechet, samples: Tensor, *, seed: int) -> float | None:
    """The bias of the Frechet distance of features (M, D) from too few samples; None below 4 of them."""
    if len(samples) < 4:
        return None
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(samples), generator=draw) for _ in range(1 if samples.shape[1] > WIDE else SPLITS)]
    halves = [moments(samples[half]) for order in orders for half in order.tensor_split(2)]
    return sum(map(distance, halves)) / len(halves) - distance(moments(samples))


def frechet_error(influence: Tensor) -> float:
    """The standard error of a Frechet distance, by the infinitesimal jackknife from the influence of its samples (M,).

    It is the root of the mean squared influence over M: two eigendecompositions, whatever the number of samples.
    """
    return float(influence.std(correction=0)) / len(influence) ** 0.5


def frechet_influence(data: Moments, samples: Tensor) -> Tensor:
    r"""How much each sample of features (M, D) moves the Frechet distance, times M, to first order: (M,).

    The influence of x (Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, chapter 6; the gradient is
    that of the Bures distance) is

        I(x) = 2 (m_b - m_a).(x - m_b) + (x - m_b)' (1 - T) (x - m_b) - its mean,
        T = C_b^(-1/2) (C_b^(1/2) C_a C_b^(1/2))^(1/2) C_b^(-1/2).
    """
    b = samples.double()
    shift, centred = b.mean(0) - data.mean, b - b.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(b) - 1))
    spans = values > values.max() * 1e-10  # samples do not vary along the others
    roots, vectors = values[spans].sqrt(), vectors[:, spans]
    inner = roots[:, None] * (vectors.T @ data.covariance @ vectors) * roots
    squares, turn = torch.linalg.eigh(inner)
    middle = (turn * squares.clamp(min=0).sqrt()) @ turn.T
    within = centred @ vectors
    moved = within / roots
    influence = 2 * centred @ shift + within.square().sum(1) - (moved @ middle * moved).sum(1)
    return influence - influence.mean()


def ratio(one: Resampled, other: Resampled) -> Estimate:
    """The distance of one model over that of another, with its 95 % interval over paired resamples.

    Both must have the same data, number of samples and seed. The interval is (0, inf) if it says nothing: if a distance
    is not above 0 (rounding can take it below), or is far smaller than the spread of its draws.
    """
    value, base = (max(0.0, each.estimate.value) for each in (one, other))
    estimate = value / base if base else inf
    if not 0 < estimate < inf:
        return Estimate(estimate, 0.0, inf)
    deviation = float((one.draws / value - other.draws / base).std())
    if not deviation < NOTHING_SAID:
        return Estimate(estimate, 0.0, inf)
    factor = exp(NORMAL * deviation)
    return Estimate(estimate, estimate / factor, estimate * factor)


def verdict(ratio: Estimate) -> str:
    """The verdict of a ratio's interval: `better`, `worse` or `undecided`."""
    if ratio.high < 1:
        return "better"
    return "worse" if ratio.low > 1 else "undecided"
