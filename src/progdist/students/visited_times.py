"""The times at which a student's stock scheduler calls its network, for other programs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.models.conditioning import Spacing
from progdist.models.model import Model
from progdist.students.folder import off_grid, stock_scheduler


@dataclass(frozen=True)
class VisitedTimes:
    """The times of N steps of a stock scheduler."""

    scheduler: SchedulerMixin
    timesteps: Sequence[float]  # N of the scheduler's, below num_train_timesteps
    sigmas: Sequence[float]  # N + 1, the last 0: sigma of a flow, sigma / alpha of a table of noise levels

    @property
    def flow(self) -> bool:
        """Whether it is a rectified flow."""
        return isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)

    @property
    def prediction(self) -> str:
        """The network's prediction type, in diffusers' terms."""
        return "flow" if self.flow else cast(Any, self.scheduler).config.prediction_type


def plain(numbers: Sequence[float]) -> str:
    """Numbers separated by commas, without exponents, each the shortest that reads back the same."""
    return ", ".join(
        np.format_float_positional(number, trim="-") if math.isfinite(number) else "inf" for number in numbers
    )


def visited_times(model: Model) -> VisitedTimes:
    """The times of a student at its own (least) step count.

    Raises:
        UserError: it has no step count, or no stock scheduler of a flow or a table.
    """
    scheduler, steps = stock_scheduler(model), min(model.steps, default=None)
    if steps is None:
        raise UserError("expected a student with its own step count, got a model for any number of steps")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        spacing: Spacing = "given" if off_grid(model) else model.conditioning.spacing
        return flow_times(scheduler, steps, spacing)
    if isinstance(scheduler, DDIMScheduler):
        return table_times(scheduler, steps)
    raise UserError(f"a {type(scheduler).__name__} has no times for other programs: sample the folder with diffusers")


def flow_times(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, spacing: Spacing) -> VisitedTimes:
    """Times of a flow, spaced by its pipeline or by the scheduler."""
    if isinstance(spacing, float):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, spacing, steps).tolist())
    elif spacing == "given":
        scheduler.set_timesteps(sigmas=[1 - number / steps for number in range(steps)])
    else:
        scheduler.set_timesteps(steps)
    timesteps, sigmas = (cast(Tensor, each).double().tolist() for each in (scheduler.timesteps, scheduler.sigmas))
    return VisitedTimes(scheduler, timesteps, sigmas)


def table_times(scheduler: DDIMScheduler, steps: int) -> VisitedTimes:
    """Times of a table of noise levels: sigma / alpha = sqrt(1 / alpha_bar - 1)."""
    scheduler.set_timesteps(steps)
    alpha_bar = scheduler.alphas_cumprod.double()[scheduler.timesteps.long()]
    sigmas = (1 / alpha_bar - 1).sqrt()
    return VisitedTimes(scheduler, scheduler.timesteps.double().tolist(), [*sigmas.tolist(), 0.0])
