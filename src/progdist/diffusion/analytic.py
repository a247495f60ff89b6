r"""Exact denoisers of data with a known density: the truth against which samplers and targets are tested.

Gaussian data N(m, c^2):

    xh(z, t) = (sigma^2 m + alpha c^2 z) / (alpha^2 c^2 + sigma^2)

    z_s = alpha_s m + sqrt((alpha_s^2 c^2 + sigma_s^2) / (alpha_t^2 c^2 + sigma_t^2)) (z_t - alpha_t m)

the second line being the exact solution of the probability-flow ODE from t to s. A mixture of isotropic Gaussians
with means m_k, common width c and weights p_k weighs the first line by its responsibilities,

    r_k ~ p_k exp(-|z - alpha m_k|^2 / (2 (alpha^2 c^2 + sigma^2))).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.schedule import Schedule


def _posterior_mean(z: Tensor, mean: Tensor, width: float, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x | z] for x ~ N(mean, width^2): shapes broadcast."""
    return (sigma**2 * mean + alpha * width**2 * z) / (alpha**2 * width**2 + sigma**2)


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of data N(mean, width^2), element by element."""

    schedule: Schedule  # the schedule of the latents
    mean: Tensor  # broadcasts against z (B, ...)
    width: float  # the standard deviation c of each element

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """E[x | z_t]; z (B, ...), t (B,) or ()."""
        alpha, sigma = (per_example(scale(t), z) for scale in (self.schedule.alpha, self.schedule.sigma))
        return _posterior_mean(z, self.mean, self.width, alpha, sigma)

    def flow(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact probability-flow solution at time s from z at time t; t and s (B,) or ()."""
        start, end = ([per_example(scale, z) for scale in self.schedule.scales(u)] for u in (t, s))
        spread_t, spread_s = (alpha**2 * self.width**2 + sigma**2 for alpha, sigma in (start, end))
        return end[0] * self.mean + (spread_s / spread_t).sqrt() * (z - start[0] * self.mean)


@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of a mixture of K isotropic Gaussians in D dimensions."""

    schedule: Schedule  # the schedule of the latents
    means: Tensor  # (K, D)
    width: float  # the standard deviation c of every component
    weights: Tensor  # (K,), summing to 1

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """E[x | z_t]; z (B, D), t (B,) or ()."""
        alpha, sigma = (per_example(scale(t), z) for scale in (self.schedule.alpha, self.schedule.sigma))
        means = self.means.to(z)
        distance = (z[:, None] - (alpha * z.new_ones(len(z), 1))[..., None] * means).square().sum(-1)
        spread = alpha**2 * self.width**2 + sigma**2
        responsibility = torch.softmax(self.weights.to(z).log() - distance / (2 * spread), dim=1)
        return _posterior_mean(z, responsibility @ means, self.width, alpha, sigma)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw data (count, D)."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.width * noise
