r"""What the network's output F(z, t) means: the way from F to the denoised data, and back.

Every parameterisation with one head is a pair of scalars at each time (paper, section 4):

    xh = c_skip z + c_out F

    x          F ~ x                        c_skip = 0                  c_out = 1
    eps        F ~ eps                      c_skip = 1 / alpha          c_out = -sigma / alpha
    v          F ~ alpha eps - sigma x      c_skip = alpha / n          c_out = -sigma / n,      n = alpha^2 + sigma^2
    velocity   F ~ eps - x                  c_skip = 1 / (alpha+sigma)  c_out = -sigma / (alpha+sigma)
    edm        F ~ sigma x - alpha eps      c_skip = alpha / n          c_out = sigma / n

n = 1 for variance-preserving schedules; `velocity` is flow matching's, dz/dt of a rectified flow; `edm` is -v, what the
raw networks of EDM predict. z, x and sigma are divided by the deviation of the data if the schedule has one (see
`Schedule.data_scale`). The paper's output with two heads is the one special case: each head gives x, and the
signal-to-noise ratio weights them,

    x_eps      F = (F_x, F_eps)             xh = (sigma^2 F_x + alpha (z - sigma F_eps)) / n

The way back, F(x, eps), needs no division, so it holds at both endpoints; only eps cannot denoise where alpha = 0.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist._utils.errors import UserError
from progdist.diffusion.schedule import Schedule


class Parameterization(ABC):
    """How a network's output relates to data x and noise eps.

    Attributes:
        name: the name under which a model folder records it; your own output needs none, and cannot be saved.
        heads: the output holds this many times the data's channels.
    """

    name: ClassVar[str] = "custom"
    heads: int = 1

    @abstractmethod
    def denoise(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The denoised data xh (B, C, ...), in the precision of z.

        Args:
            output: the network's F(z, t), (B, heads * C, ...).
            z: the latent, (B, C, ...).
            alpha: its data scale in float64, (B,) or ().
            sigma: its noise scale in float64, (B,) or ().
        """

    @abstractmethod
    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output of a perfect network; shapes as in `denoise`."""

    def check(self, schedule: Schedule) -> None:
        """Raise `UserError` if this output cannot denoise at some time of the schedule."""
        return


class OneHead(Parameterization):
    """xh = c_skip z + c_out F."""

    @abstractmethod
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) in float64, each of alpha's shape."""

    def denoise(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """xh = c_skip z + c_out F."""
        c_skip, c_out = self.coefficients(alpha, sigma)
        return per_example(c_skip, z) * z + per_example(c_out, z) * output.to(z)


class X(OneHead):
    """F ~ x."""

    name: ClassVar[str] = "x"

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(0, 1)."""
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The data x."""
        return x


class Eps(OneHead):
    """F ~ eps."""

    name: ClassVar[str] = "eps"

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(1 / alpha, -sigma / alpha)."""
        return 1 / alpha, -sigma / alpha

    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise eps."""
        return eps

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule that ends in pure noise, where eps says nothing about x."""
        if schedule.alpha(torch.ones((), dtype=torch.float64)) == 0:
            raise UserError(
                "epsilon prediction requires a schedule that ends above zero SNR, but this one ends in pure noise, "
                "where eps says nothing about the data: use v or x, or another schedule"
            )


class V(OneHead):
    """F ~ v = alpha eps - sigma x."""

    name: ClassVar[str] = "v"

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, -sigma) / (alpha^2 + sigma^2)."""
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm

    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha eps - sigma x."""
        return per_example(alpha, x) * eps - per_example(sigma, x) * x


class Edm(V):
    """F ~ -v, as in EDM's networks and stock EDM schedulers with prediction type `epsilon` (see `Karras`)."""

    name: ClassVar[str] = "edm"

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) / (alpha^2 + sigma^2)."""
        c_skip, c_out = super().coefficients(alpha, sigma)
        return c_skip, -c_out

    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """sigma x - alpha eps."""
        return -super().output(x, eps, alpha, sigma)


class Velocity(OneHead):
    """F ~ eps - x, the straight-line velocity of flow matching."""

    name: ClassVar[str] = "velocity"

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(1, -sigma) / (alpha + sigma)."""
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)

    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise minus the data."""
        return eps - x


class XEps(Parameterization):
    """F = (F_x, F_eps) stacked along the channels: each gives x, weighted by sigma^2 and alpha^2."""

    name: ClassVar[str] = "x_eps"
    heads = 2

    def denoise(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """xh = (sigma^2 F_x + alpha (z - sigma F_eps)) / (alpha^2 + sigma^2)."""
        x_head, eps_head = output.to(z).chunk(2, dim=1)
        norm = alpha**2 + sigma**2
        scales = (sigma**2 / norm, alpha / norm, alpha * sigma / norm)
        c_x, c_skip, c_eps = (per_example(scale, z) for scale in scales)
        return c_x * x_head + c_skip * z - c_eps * eps_head

    def output(self, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(x, eps) along the channels."""
        return torch.cat([x, eps], dim=1)


PARAMETERIZATIONS: dict[str, Parameterization] = {
    each.name: each for each in (X(), Eps(), V(), Edm(), Velocity(), XEps())
}
"""By the paper's names."""

PREDICTION_TYPES = {"sample": "x", "epsilon": "eps", "v_prediction": "v", "flow_prediction": "velocity"}
"""diffusers' prediction types, and the names above."""


def as_parameterization(prediction_type: str | Parameterization) -> Parameterization:
    """The parameterization with a name, the paper's ("v") or diffusers' ("v_prediction"), or your own."""
    if isinstance(prediction_type, Parameterization):
        return prediction_type
    if not isinstance(prediction_type, str):
        is_class = isinstance(prediction_type, type) and issubclass(prediction_type, Parameterization)
        hint = f"an instance: pass {prediction_type.__name__}()" if is_class else 'a name: pass e.g. "epsilon"'
        raise UserError(f"prediction_type is {str(prediction_type)[:60]}, expected {hint}")
    name = PREDICTION_TYPES.get(prediction_type, prediction_type)
    if name not in PARAMETERIZATIONS:
        names = ", ".join((*PREDICTION_TYPES, *PARAMETERIZATIONS))
        raise UserError(f"prediction type {prediction_type!r} is unknown: use one of {names}")
    return PARAMETERIZATIONS[name]
