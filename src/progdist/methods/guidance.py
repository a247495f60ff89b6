r"""What a teacher's sampler does to its predictions, as denoisers around a denoiser: guidance and clipping.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) mixes two predictions,

    xh = xh(z, t, uncond) + g (xh(z, t, c) - xh(z, t, uncond)),    c a class or a caption

The weights 1 - g and g have sum 1 and xh is affine in eps, so to mix predictions of eps, as stock samplers do, is the
same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.schedule import Schedule


@dataclass(frozen=True)
class _Wrapper:
    """A denoiser around another one, of its schedule."""

    denoiser: DenoiserProtocol

    @property
    def schedule(self) -> Schedule:
        """The denoiser's."""
        return self.denoiser.schedule


@dataclass(frozen=True)
class Guided(_Wrapper):
    """Classifier-free guidance.

    Args:
        denoiser: conditional.
        unconditional: what takes the place of some of the condition, each (1, ...): a label or embeddings.
        scale: g for all; None where every example brings its own as the condition `guidance`. 1 is no guidance.
    """

    unconditional: Mapping[str, Tensor]
    scale: float | None = None

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The mixture for latents z (B, ...), a condition of B rows, and its `guidance` (B,): two evaluations."""
        g = condition.pop("guidance") if self.scale is None else torch.tensor(self.scale, dtype=torch.float64)
        rows = {name: row.to(condition[name]).expand_as(condition[name]) for name, row in self.unconditional.items()}
        uncond = self.denoiser(z, t, **{**condition, **rows})
        return uncond + per_example(g, z) * (self.denoiser(z, t, **condition) - uncond)


@dataclass(frozen=True)
class Clipped(_Wrapper):
    """A denoiser whose predictions are kept within [-bound, bound], as many image samplers do."""

    bound: float = 1.0

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """xh within [-bound, bound]."""
        return self.denoiser(z, t, **condition).clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Thresholded(_Wrapper):
    """A denoiser whose predictions are divided by their own largest value (dynamic thresholding).

        xh clipped to [-s, s], over s,    s = the quantile of |xh| over an example's elements, within [1, max_value]

    Source: Saharia et al. 2022 (arXiv 2205.11487), section 2.3; diffusers' `thresholding`.

    Args:
        denoiser: whose predictions are taken.
        ratio: the quantile, in [0, 1].
        max_value: the largest s; diffusers' `sample_max_value`.
    """

    ratio: float
    max_value: float

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """xh within [-1, 1]."""
        x = self.denoiser(z, t, **condition)
        s = x.flatten(1).abs().float().quantile(self.ratio, dim=1).clamp(1, max(1.0, self.max_value))
        s = per_example(s, x)
        return x.clamp(-s, s) / s
