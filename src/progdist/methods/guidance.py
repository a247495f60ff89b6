r"""Guidance: what a student learns of it, and wrappers for what a teacher's sampler does.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) mixes two predictions,

    xh = xh(z, t, uncond) + g (xh(z, t, c) - xh(z, t, uncond)),    c a class or a caption

The weights 1 - g and g sum to 1 and xh is affine in eps, so mixing predictions of eps, as stock samplers do, gives the
same. A student is distilled for one scale (`Fixed`), or gets an input for a range of scales (`Input`), as in stage one
of Meng et al. 2023 (arXiv 2210.03142).

Some pipelines then rescale the network's output F to the norm of the conditional one, over the last axis,

    F = F_mix |F_c| / |F_mix|,    F_mix = F_u + g (F_c - F_u)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from progdist._utils.broadcasting import per_example
from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.parameterization import Eps
from progdist.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Fixed:
    """One guidance scale, distilled into a student without an input for it."""

    scale: float

    def __post_init__(self) -> None:
        _check(self.scale)

    def to_json(self) -> float:
        """The form in which model folders record it."""
        return self.scale

    def __str__(self) -> str:
        return f"{self.scale:g}"


@dataclass(frozen=True)
class Input:
    """A range of guidance scales that a network takes as an input; low = high for a network with only one."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check(self.low, self.high)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A scale, float64 (): the lowest for one example in five, else one with a uniform logarithm."""
        low, high = math.log(self.low), math.log(self.high)
        scale = torch.empty((), dtype=torch.float64)
        return scale.uniform_(low - (high - low) / 4, high, generator=generator).clamp_(min=low).exp_()

    def nearest(self, scale: float) -> float:
        """The scale of the range nearest to the given one."""
        return min(max(scale, self.low), self.high)

    def __contains__(self, scale: float) -> bool:
        return self.low <= scale <= self.high

    def edges(self, count: int = 4) -> list[float]:
        """The edges of `count` intervals of the range, in equal ratios."""
        return [self.low * (self.high / self.low) ** (number / count) for number in range(count + 1)]

    def to_json(self) -> list[float]:
        """The form in which model folders record it."""
        return [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


Guidance = Fixed | Input


def as_guidance(value: Guidance | float | Sequence[float] | None) -> Guidance | None:
    """Make a guidance from a positive number, a pair (low, high), a guidance or None. Raise a UserError for others."""
    if value is None or isinstance(value, Fixed | Input):
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        return Fixed(float(value))
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(each, Real) for each in value):
        return Input(float(value[0]), float(value[1]))
    raise UserError(f"guidance is {str(value)[:50]}, expected a positive scale, or a range of two: (1, 8)")


def requested_guidance(value: Guidance | float | Sequence[float] | None) -> Guidance | None:
    """Like `as_guidance`, for a user's request: raise a UserError for a range of one scale."""
    guidance = as_guidance(value)
    if isinstance(guidance, Input) and guidance.low == guidance.high:
        raise UserError(f"guidance {guidance.to_json()} is not a range: give the lowest scale, then the highest")
    return guidance


def _check(*scales: float) -> None:
    if not (all(0 < scale < math.inf for scale in scales) and list(scales) == sorted(scales)):
        listed = " to ".join(f"{scale:g}" for scale in scales)
        raise UserError(f"guidance is {listed}, expected a positive scale, or a range with low < high")


@dataclass(frozen=True)
class _Wrapper:
    """A wrapper around a denoiser, with the same schedule."""

    denoiser: DenoiserProtocol

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule


@dataclass(frozen=True)
class Guided(_Wrapper):
    """Classifier-free guidance.

    Args:
        denoiser: a conditional denoiser.
        unconditional: replaces part of the condition, each (1, ...): a label or embeddings.
        scale: g for all; None where every example brings its own as the condition `guidance`. 1 is no guidance.
        normalized: whether the network's output keeps the norm of the conditional one; requires a `Denoiser`.
    """

    unconditional: Mapping[str, Tensor]
    scale: float | None = None
    normalized: bool = False

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The mixture for latents z (B, ...), a condition of B rows, and its `guidance` (B,): two evaluations."""
        g = condition.pop("guidance") if self.scale is None else torch.tensor(self.scale, dtype=torch.float64)
        rows, condition = of_one_shape(self.unconditional, condition)
        uncond, cond = self.denoiser(z, t, **{**condition, **rows}), self.denoiser(z, t, **condition)
        mixed = uncond + per_example(g, z) * (cond - uncond)
        return self._with_norm_of(cond, mixed, z, t) if self.normalized else mixed

    def _with_norm_of(self, cond: Tensor, mixed: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The mixture, with the network's output rescaled to the norm of the conditional one over the last axis."""
        output = cast(Denoiser, self.denoiser).parameterization
        alpha, sigma = self.schedule.scales(t.double())
        a, s = per_example(alpha, z), per_example(sigma, z)
        of_cond, of_mixed = (output.output(x, (z - a * x) / s, alpha, sigma) for x in (cond, mixed))
        norms = (each.norm(dim=-1, keepdim=True) for each in (of_cond, of_mixed))
        return output.denoise(of_mixed * (next(norms) / next(norms)), z, alpha, sigma)


def of_one_shape(
    rows: Mapping[str, Tensor], condition: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Single rows (1, ...) for every example of a condition, and the condition; shorter ones are padded with zeros."""
    single, batch = dict[str, Tensor](), dict(condition)
    for name, row in rows.items():
        row = row.to(condition[name])
        sides = [max(pair) for pair in zip(row.shape[1:], condition[name].shape[1:], strict=True)]
        single[name] = filled(row, sides).expand(len(condition[name]), *sides)
        batch[name] = filled(condition[name], sides)
    return single, batch


def filled(x: Tensor, sides: Sequence[int]) -> Tensor:
    """x (B, ...) padded with zeros at the end, (B, *sides)."""
    missing = [side - length for side, length in zip(sides, x.shape[1:], strict=True)]
    return x if not any(missing) else pad(x, [each for side in reversed(missing) for each in (0, side)])


@dataclass(frozen=True)
class Clipped(_Wrapper):
    """A denoiser with predictions clipped to [-bound, bound], as in many image samplers."""

    bound: float = 1.0

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The prediction, clipped to [-bound, bound]."""
        return self.denoiser(z, t, **condition).clamp(-self.bound, self.bound)


LEAST_SNR = 1e-6  # below it an error in eps grows a thousandfold or more in x


def unclipped_warning(denoiser: Denoiser) -> str | None:
    """The warning about a denoiser that divides its eps by a tiny alpha; None for others.

    xh - x = (sigma / alpha) (eps - eps_h)
    """
    rho = float(denoiser.schedule.rho(torch.ones((), dtype=torch.float64)))
    if not isinstance(denoiser.parameterization, Eps) or rho**2 >= LEAST_SNR:
        return None
    return (
        f"this model predicts eps on a schedule that ends at a signal-to-noise ratio of {rho**2:.1g}, where an error "
        f"in x is {1 / rho:,.0f} times that in eps: pass clip=True if its own sampler clips images to [-1, 1]"
    )


@dataclass(frozen=True)
class Thresholded(_Wrapper):
    """A denoiser whose predictions are divided by their own largest value (dynamic thresholding).

        xh clipped to [-s, s], over s,    s = the quantile of |xh| over an example's elements, within [1, max_value]

    Source: Saharia et al. 2022 (arXiv 2205.11487), section 2.3; diffusers' `thresholding`.
    """

    ratio: float
    max_value: float

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The prediction, within [-1, 1]."""
        x = self.denoiser(z, t, **condition)
        s = x.flatten(1).abs().float().quantile(self.ratio, dim=1).clamp(1, max(1.0, self.max_value))
        s = per_example(s, x)
        return x.clamp(-s, s) / s
