"""A toy kind of teacher: a rectified flow whose network predicts the denoised sample in place of the velocity.

The scheduler is made up for these tests. This file and the line of SAMPLE_FLOW in `progdist.teachers.SCHEDULERS` are
all that such teachers need.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from progdist import UserError
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import as_parameterization
from progdist.diffusion.schedule import RectifiedFlow
from progdist.models.conditioning import Spacing
from progdist.teachers.schedulers import Formulation, SchedulerKind


class SampleFlowScheduler(SchedulerMixin, ConfigMixin):
    """z_t = (1 - t) x + t eps, from t = 1 to 0 in even steps of Euler's method."""

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, steps: int | None = None) -> None:
        self.set_timesteps(steps or 1)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """The times 1, (N - 1)/N, ..., 1/N, in training timesteps."""
        self.sigmas = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        self.timesteps = self.config["num_train_timesteps"] * self.sigmas[:-1]

    def step(self, x: Tensor, timestep: Tensor, z: Tensor) -> SchedulerOutput:
        """The latents one step further: those of x and of the noise that z and x mean."""
        place = int((self.timesteps == timestep).nonzero()[0])
        t, s = self.sigmas[place : place + 2].tolist()
        return SchedulerOutput(prev_sample=(1 - s) * x + s * (z - (1 - t) * x) / t)


def read(folder: Path, config: Mapping[str, Any]) -> Formulation:
    """What the scheduler's config says."""
    if config.get("invert_sigmas"):
        raise UserError(f"{folder}/scheduler has invert_sigmas: expected noise at 1")
    return Formulation(RectifiedFlow(), as_parameterization("sample"), offset=0.0)


def write(denoiser: Denoiser, steps: int | None, spacing: Spacing) -> SampleFlowScheduler | None:
    """The scheduler of a student that predicts the sample on the straight lines of a flow."""
    if isinstance(denoiser.schedule, RectifiedFlow) and denoiser.parameterization == as_parameterization("sample"):
        return SampleFlowScheduler(denoiser.num_train_timesteps, steps)
    return None


SAMPLE_FLOW = SchedulerKind(classes=("SampleFlowScheduler",), read=read, write=write)
