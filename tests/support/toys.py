"""Small exact things: times, labels of test parameters, the analytic networks of the recorded runs."""

import torch
from torch import Tensor

from progdist import Cosine
from progdist.diffusion.analytic import Gaussian


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def label(value: object) -> str:
    """A short name for a parameter of a test."""
    return value if isinstance(value, str) else type(value).__name__


class OfficialDenoiser:
    """The two analytic networks of the recorded runs: 0 is the exact one, 1 the wrong one."""

    schedule = Cosine()

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong
        self.exact = Gaussian(Cosine(), torch.tensor(0.3).double(), 0.5 * 1.3**wrong)

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.exact(z, t) + self.wrong * 0.1 * z.sin()
