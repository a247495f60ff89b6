r"""The kernel distance of features (Binkowski et al. 2018, arXiv 1801.01401; KID where they are Inception's).

    mean k(a, a') + mean k(b, b') - 2 mean k(a, b) over distinct pairs,     k(f, g) = (f.g / D + 1)^3,     times 1000

the unbiased estimate of the squared maximum mean discrepancy, by torchmetrics: as in the paper the mean over subsets of
1,000 vectors of each set; 100 of 50,000 samples, fewer of fewer, one where there are no more. Unlike the Frechet
distance it has no bias, and can be negative.
"""

import warnings

import torch
from torch import Tensor, nn

SUBSET, SUBSETS = 1000, 100  # vectors of each set in a subset, and subsets, at most


class PrecomputedFeatures(nn.Module):
    """Features handed over as they are, where torchmetrics asks for a network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features


def kernel_distance(data: Tensor, samples: Tensor, *, seed: int, halves: int = 20) -> tuple[float, float]:
    """1000 times the kernel distance of features (N, D) and (M, D), and its standard error.

    The error is the deviation over random subsets of half the size, over the root of the number of whole subsets that
    the smaller set has room for: an estimate that is on the large side where there are several.
    """
    fewer = min(len(data), len(samples))
    size = min(fewer, SUBSET)
    subsets = min(SUBSETS, 2 * -(-fewer // SUBSET)) if fewer > SUBSET else 1
    mean, _ = _subsets(data, samples, size, subsets, seed)
    _, deviation = _subsets(data, samples, max(2, size // 2), halves, seed)
    return mean, deviation / (fewer / size) ** 0.5


def _subsets(data: Tensor, samples: Tensor, size: int, subsets: int, seed: int) -> tuple[float, float]:
    """The mean and the deviation over subsets of one size."""
    from torchmetrics.image.kid import KernelInceptionDistance  # takes a second, and only who measures waits for it

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(seed)
        precomputed = PrecomputedFeatures(data.shape[1])
        metric = KernelInceptionDistance(precomputed, subsets=subsets, subset_size=size, sync_on_compute=False)
        metric.update(data, real=True)
        metric.update(samples, real=False)
        mean, deviation = metric.compute()
    return 1000 * float(mean), 1000 * float(deviation)
