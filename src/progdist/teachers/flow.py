r"""Rectified flows: teachers with flow-matching schedulers or solvers with flow sigmas, and their students'.

A teacher's times may be shifted by the size of the image (dynamic shifting), s = e^mu, with a mu that was observed in
its pipeline (see `progdist.teachers.pipeline`). A student's scheduler is configured so that `set_timesteps(N)` alone
visits our grid, sigma_i = f_s(1 - i / N) for i = 0, ..., N - 1, and then 0, with f_s(u) = s u / (1 + (s - 1) u) for a
shift s. With T timesteps, a stock scheduler with shift S spaces u evenly from 1 to f_S(1 / T), shifts that by S, and
stretches the result until it ends at `shift_terminal`:

    1 - sigma_i = k (1 - f_S(1 - i c)) = k i c / (S - (S - 1) i c),    c = (1 - f_S(1 / T)) / (N - 1)

Ours is 1 - sigma_i = i / (s N - (s - 1) i). Both end at the same sigma_{N-1} if shift_terminal = f_s(1 / N), and are
then the same at every i if S / ((S - 1) c) = s N / (s - 1), that is S (s N c - s + 1) = s N c. With
c = a / (T + S - 1) and a = (T - 1) / (N - 1) that is a quadratic equation,

    (s - 1) S^2 - b S + s N a = 0,    b = s N a - (s - 1) (T - 1) = (T - 1) (1 + s / (N - 1))

with S = 2 s N a / (b + sqrt(b^2 - 4 (s - 1) s N a)) as the root near s. For s = 1 it is 1. It is real for every s if
T > 4 N (N - 1), and at every N for s up to (1 + sqrt(T)) / 2, about 16 for T = 1000.

Some pipelines space u evenly from 1 to their own number u_N, 0 or 1 / T. Then c = (1 - u_N) / (N - 1), and

    S = s N c / (s N c - s + 1)
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import RectifiedFlow
from progdist.models.conditioning import Spacing
from progdist.teachers.schedulers import SOLVERS, Formulation, SchedulerKind

DYNAMIC = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
"""The fields by which a pipeline shifts its times for the size of an image."""


def read(folder: Path, config: Mapping[str, Any]) -> Formulation:
    """Read the rectified flow of a scheduler's config, whose times are shifted towards noise.

    Raises:
        UserError: it is damaged, shifts by an unknown size, or runs the other way.
    """
    solver = config["_class_name"] in SOLVERS
    if solver and config.get("prediction_type", "epsilon") != "flow_prediction":
        raise UserError(
            f"{folder}/scheduler: prediction_type is {str(config.get('prediction_type'))[:50]!r}, expected "
            "flow_prediction with use_flow_sigmas: restore it"
        )
    if config.get("use_dynamic_shifting", False):
        raise UserError(
            f"{folder}/scheduler shifts its times by the size of each image (use_dynamic_shifting), which only its "
            "pipeline knows: set it to false, and shift to the number for your size"
        )
    if config.get("invert_sigmas"):
        raise UserError(
            f"{folder}/scheduler has invert_sigmas, so its flow has data at t = 1: expected a flow with noise there"
        )
    name = "flow_shift" if solver else "shift"
    shift = config.get(name, 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < 1000:
        raise UserError(f"{folder}/scheduler is damaged ({name} is {str(shift)[:50]}): restore it")
    return Formulation(RectifiedFlow(float(shift)), PARAMETERIZATIONS["velocity"], 0.0)


def write(denoiser: Denoiser, steps: int | None, spacing: Spacing = "stock") -> FlowMatchEulerDiscreteScheduler | None:
    """The scheduler of a rectified flow with velocity output; None for another kind."""
    schedule = denoiser.schedule
    if isinstance(schedule, RectifiedFlow) and denoiser.parameterization.name == "velocity" and denoiser.offset == 0:
        return flow_scheduler(schedule.shift, denoiser.num_train_timesteps, steps, spacing)
    return None


def flow_scheduler(
    shift: float, num_train_timesteps: int, steps: int | None, spacing: Spacing = "stock"
) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a flow of shift s, whose `set_timesteps(N)` visits our grid at N = `steps`.

    For None, or if the equation has no root, `set_timesteps(sigmas=[1, (N - 1) / N, ..., 1 / N])` visits it, for every
    N.
    """
    if spacing == "given":
        steps = None
    if isinstance(spacing, float) and steps and steps > 1:
        reach = shift * steps * (1 - spacing) / (steps - 1)
        stock = reach / (reach - shift + 1)
    else:
        stock = stock_shift(shift, num_train_timesteps, steps or 1)
    if steps is None or stock is None:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps, shift=shift)
    if steps == 1:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps, shift=stock)
    last = shift / (steps + shift - 1)
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps, shift=stock, shift_terminal=last)


def stock_shift(shift: float, num_train_timesteps: int, steps: int) -> float | None:
    """S of the equation above; None if it has no root."""
    if steps == 1 or shift == 1:
        return shift  # one step has one sigma, 1
    a = (num_train_timesteps - 1) / (steps - 1)
    b = (num_train_timesteps - 1) * (1 + shift / (steps - 1))
    product = shift * steps * a
    discriminant = b**2 - 4 * (shift - 1) * product
    return 2 * product / (b + math.sqrt(discriminant)) if discriminant >= 0 else None


def missed(denoiser: Denoiser, counts: Sequence[int]) -> tuple[Sequence[int], str]:
    """The smallest step count, for which a student's scheduler is written, if the equation has no root there."""
    schedule, steps = denoiser.schedule, min(counts)
    assert isinstance(schedule, RectifiedFlow)  # ensured by write
    rootless = stock_shift(schedule.shift, denoiser.num_train_timesteps, steps) is None
    remedy = f"call scheduler.set_timesteps(sigmas=[1 - i / {steps} for i in range({steps})])"
    return [steps] if rootless else [], remedy


FLOW = SchedulerKind(
    classes=("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", *SOLVERS),
    read=read,
    write=write,
    missed=missed,
    fields=frozenset({*DYNAMIC, "shift", "flow_shift", "use_flow_sigmas", "use_dynamic_shifting", "invert_sigmas"}),
)
