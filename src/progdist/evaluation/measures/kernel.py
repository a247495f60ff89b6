r"""The kernel distance of features (Binkowski et al. 2018, arXiv 1801.01401; KID if they are Inception's).

    mean k(a, a') + mean k(b, b') - 2 mean k(a, b) over distinct pairs,     k(f, g) = (f.g / D + 1)^3,     times 1000

the unbiased estimate of the squared maximum mean discrepancy, by torchmetrics. As in the paper it is the mean over
random subsets of 1,000 vectors of each set, or as many as the smaller one has: 100 for 50,000 samples, fewer for fewer,
one for two sets of that size. Unlike the Frechet distance it has no bias, and can be negative.

It is a U-statistic of two sets of n and m vectors, with the variance of its Hoeffding decomposition: with
u(a) = E k(a, a') - E k(a, b), v likewise, and k_c, k minus its means over either argument,

    V(n, m) = 4 Var u / n + 4 Var v / m + 2 Var k_c(a, a') / (n (n - 1)) + 2 Var k_c(b, b') / (m (m - 1))
              + 4 Var k_c(a, b) / (n m)

(Serfling 1980, Approximation Theorems of Mathematical Statistics, chapter 5; Sutherland & Deka 2019, arXiv 1906.02104).
Means in place of the expectations in u and v add the second line's terms once more, which is subtracted. Given the
sets, the values of subsets of s vectors are independent, with the mean that has V(n, m): the mean of K varies by

    V(n, m) + (V(s, s) - V(n, m)) / K
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from progdist._utils.memoize import once_per_tensor

SUBSET, SUBSETS = 1000, 100  # most vectors of each set in a subset, and most subsets
SPREAD = 2000  # most vectors of each set in the kernel that the variance is computed from


class PrecomputedFeatures(nn.Module):
    """Passes features through where torchmetrics requires a network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features


def kernel_distance(data: Tensor, samples: Tensor, *, seed: int) -> tuple[float, float]:
    """1000 times the kernel distance of features (N, D) and (M, D), at least 2 of each, and its standard error.

    The error is that of the distance between the distributions: both sets count as draws.
    """
    fewer, more = sorted((len(data), len(samples)))
    size = min(fewer, SUBSET)
    subsets = min(SUBSETS, 2 * -(-more // size)) if more > size else 1
    orders = _orders(len(data), len(samples), seed)
    spread = Spread.of(_data_pairs(data, seed), Pairs.of(samples[orders[1]].double()))
    whole = spread.variance(len(data), len(samples))
    variance = whole + (spread.variance(size, size) - whole) / subsets
    return _mean_of_subsets(data, samples, size, subsets, seed), 1000 * variance**0.5


@dataclass(frozen=True)
class Pairs:
    """What the kernel of the pairs within one set gives."""

    vectors: Tensor  # (N, D), float64
    means: Tensor  # (N,), of k(a, a') over the other a'
    variance: float  # Var k_c(a, a')

    @classmethod
    def of(cls, vectors: Tensor) -> "Pairs":
        """From vectors (N, D) in float64."""
        own, count = _kernel(vectors, vectors).fill_diagonal_(0), len(vectors)
        means = own.sum(1) / (count - 1)
        centred = (own - means[:, None] - means + means.mean()).fill_diagonal_(0)
        return cls(vectors, means, float(centred.square().sum()) / (count * (count - 1)))


@once_per_tensor
def _data_pairs(data: Tensor, seed: int) -> Pairs:
    """The pairs within the data, the same for every model that is compared with them."""
    return Pairs.of(data[_orders(len(data), 0, seed)[0]].double())


def _orders(data: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which vectors of either set the variance is computed from, drawn in this order."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randperm(data, generator=draw)[:SPREAD], torch.randperm(samples, generator=draw)[:SPREAD]


@dataclass(frozen=True)
class Spread:
    """The variances in V(n, m), of the data and of the samples."""

    means: tuple[float, float]  # Var u, Var v
    within: tuple[float, float]  # Var k_c(a, a'), Var k_c(b, b')
    between: float  # Var k_c(a, b)

    @classmethod
    def of(cls, a: Pairs, b: Pairs) -> "Spread":
        """From the pairs within the data and within the samples."""
        across = _kernel(a.vectors, b.vectors)
        between = float(_double_centred(across).square().mean())

        def mean(x: Pairs, other: Tensor, others: int) -> float:
            noise = x.variance / (len(x.means) - 1) + between / others  # of the means in place of the expectations
            return max(0.0, float((x.means - other).var()) - noise)

        means = mean(a, across.mean(1), len(b.means)), mean(b, across.mean(0), len(a.means))
        return cls(means, (a.variance, b.variance), between)

    def variance(self, n: int, m: int) -> float:
        """V(n, m)."""
        counts = (n, m)
        linear = sum(4 * each / count for each, count in zip(self.means, counts, strict=True))
        squares = sum(2 * each / (count * (count - 1)) for each, count in zip(self.within, counts, strict=True))
        return linear + squares + 4 * self.between / (n * m)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """k of every pair: (N, M) of (N, D) and (M, D)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _double_centred(table: Tensor) -> Tensor:
    """A table minus the means of its rows and columns."""
    return table - table.mean(0) - table.mean(1)[:, None] + table.mean()


def _mean_of_subsets(data: Tensor, samples: Tensor, size: int, subsets: int, seed: int) -> float:
    """1000 times the mean over subsets of one size."""
    from torchmetrics.image.kid import KernelInceptionDistance  # takes a second to import

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(seed)
        precomputed = PrecomputedFeatures(data.shape[1])
        metric = KernelInceptionDistance(precomputed, subsets=subsets, subset_size=size, sync_on_compute=False)
        metric.update(data, real=True)
        metric.update(samples, real=False)
        return 1000 * float(metric.compute()[0])
