r"""Mean and covariance of features, all at once or batch by batch.

Two sets of n and m vectors with means a, b and scatters S_a = sum (x - a)(x - a)', S_b together have

    mean a + (b - a) m / (n + m),     scatter S_a + S_b + (b - a)(b - a)' n m / (n + m),     covariance S / (count - 1)

(Chan, Golub & LeVeque 1983, Algorithms for Computing the Sample Variance), without differences of large numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.words import counted


@dataclass(frozen=True)
class Moments:
    """The first two moments of vectors."""

    mean: Tensor  # (D,), float64
    covariance: Tensor  # (D, D), float64, unbiased
    count: int | None = None  # the number of vectors; None if unknown


def moments(features: Tensor) -> Moments:
    """The moments of features (N, D). Raise a UserError for fewer than two."""
    return running_moments([features])


def running_moments(batches: Iterable[Tensor]) -> Moments:
    """Like `moments`, for features in batches (B, D), with one in memory at a time."""
    count, mean, scatter = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in batches:
        x = batch.double()
        total, own = count + len(x), x.mean(0)
        shift, centred = own - mean, x - own
        scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * len(x) / total)
        mean = mean + shift * (len(x) / total)
        count = total
    if count < 2:
        raise UserError(f"mean and covariance require at least 2, got {counted(count, 'image')}: give more")
    return Moments(mean, scatter / (count - 1), count)
