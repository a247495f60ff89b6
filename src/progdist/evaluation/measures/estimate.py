r"""A number with its 95 % interval, and the two methods that compute intervals.

bootstrap        samples are redrawn with replacement. Repeated samples raise distances by about their bias, so
                 percentiles are taken about the draws' own mean (Efron & Tibshirani 1993, chapter 10)
random halves    the delete-d jackknife with d = n / 2: the deviation over halves drawn without repeats is that of
                 the whole, since (n - d) / d = 1 (Shao & Wu 1989, A General Theory for Jackknife Variance
                 Estimation). Used for measures of neighbours, where a repeated sample would be its own neighbour
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL = 1.96  # standard errors to either side that contain 95 % of a normal distribution
STUDENT_10 = 2.262  # the same for an error that is estimated from ten draws: Student's t, 9 degrees of freedom


@dataclass(frozen=True)
class Estimate:
    """A number, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def normal(
        cls, value: float, error: float, least: float = 0.0, most: float = float("inf"), errors: float = NORMAL
    ) -> "Estimate":
        """A number with a standard error; its interval, `errors` to either side, is kept within [least, most]."""
        return cls(value, max(least, value - errors * error), min(most, value + errors * error))


def centred_interval(estimate: float, draws: Tensor) -> tuple[float, float]:
    """The 95 % interval of an estimate from resampled ones (R,), about their own mean."""
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = (draws.double() - draws.double().mean()).quantile(ends).tolist()
    return estimate + low, estimate + high


def half_deviation(measure: Callable[[Tensor], Tensor], count: int, *, repeats: int, seed: int) -> Tensor:
    """The standard error (K,) of measures of `count` >= 2 samples: their deviation over `repeats` random halves.

    `measure` maps indices (count // 2,) of the samples to their measures (K,).
    """
    draw = torch.Generator().manual_seed(seed)
    halves = (torch.randperm(count, generator=draw)[: max(1, count // 2)] for _ in range(repeats))
    return torch.stack([measure(half) for half in halves]).std(0)
