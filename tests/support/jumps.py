"""The perfect student of Gaussian data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.sampler import ddim_update
from progdist.diffusion.schedule import Schedule


@dataclass
class Jumps:
    """The perfect student: its step from t ends where the exact flow of Gaussian data has come to at `end(t)`."""

    exact: Gaussian
    segments: int

    @property
    def schedule(self) -> Schedule:
        return self.exact.schedule

    def end(self, t: Tensor) -> Tensor:
        return ((t * self.segments).ceil() - 1) / self.segments

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """From z_s = a z_t + b xh: xh = (z_s - a z_t) / b."""
        s = self.end(t)
        landed = self.exact.flow(z, t, s)
        zeros, ones = torch.zeros_like(z), torch.ones_like(z)
        a, b = ddim_update(self.schedule, ones, zeros, t, s), ddim_update(self.schedule, zeros, ones, t, s)
        return (landed - a * z) / b
