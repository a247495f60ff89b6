"""Algorithm 2's "while not converged" as an explicit rule.

At a fixed interval of updates the held-out distillation loss L_j is measured on the same examples and noise. With its
moving average over w measurements

    A_j = (L_{j-w+1} + ... + L_j) / w

training has converged at the first j >= 2w at which w more measurements have not improved it by the given fraction:

    A_j > (1 - fraction) A_{j-w}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from progdist._utils.errors import UserError


@dataclass(frozen=True)
class EarlyStopping:
    """The stopping rule.

    Args:
        every: updates between measurements.
        window: w, measurements in the average.
        fraction: the least improvement worth training for, in [0, 1).
        held_out: examples that no student trains on; each of several crops counts as one.
    """

    every: int = 100
    window: int = 5
    fraction: float = 0.01
    held_out: int = 256

    def __post_init__(self) -> None:
        for name in ("every", "window", "held_out"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.fraction < 1:
            raise UserError(f"fraction is {self.fraction}, expected at least 0 and less than 1")

    def averages(self, losses: Sequence[float]) -> tuple[float, float] | None:
        """(A_{j-w}, A_j) of the measurements so far, or None while there are fewer than 2w."""
        if len(losses) < 2 * self.window:
            return None
        return fmean(losses[-2 * self.window : -self.window]), fmean(losses[-self.window :])

    def reached(self, losses: Sequence[float]) -> bool:
        """Whether the last measurement is the one to stop at."""
        averages = self.averages(losses)
        return averages is not None and averages[1] > (1 - self.fraction) * averages[0]
