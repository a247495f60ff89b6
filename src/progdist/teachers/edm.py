r"""EDM: teachers with stock schedulers that precondition their network (Karras et al. 2022), and their students'.

    epsilon         D = c_skip x + c_out F(c_in x, c_noise)     the output `edm` of the schedule `Karras`
    v_prediction    D = c_skip x - c_out F(c_in x, c_noise)     its output `v`

and EulerDiscreteScheduler with continuous timesteps and v_prediction is the second, for data of deviation 1.

A student's scheduler is configured so that `set_timesteps(N)` alone visits our grid t = 1, (N - 1) / N, ..., 1 / N, and
then the data. A stock scheduler spaces N levels evenly in the root of the power (or in the logarithm) from sigma_max to
its sigma_min, both included; ours have the same spacing and end at the level of t = 1 / N, which becomes its sigma_min.

No stock scheduler spaces times evenly in the angle. In one or two steps there is no level in between, so the same one
visits them. In more, `set_timesteps(N, sigmas=u)` does: EDMEulerScheduler's argument of that name is the position of
each level, from 0 for sigma_max to 1 for sigma_min, which is linear in the level for power 1,

    u_i = (s_0 - s_i) / (s_0 - s_{N-1}),    s_i = d tan phi_i

A network that receives 2 atan(s) / pi has no such scheduler: CosineDPMSolverMultistepScheduler adds noise in its steps.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import Karras
from progdist.models.conditioning import Spacing
from progdist.teachers.schedulers import FIELDS as OF_A_TABLE
from progdist.teachers.schedulers import (
    KEYS,
    Formulation,
    SchedulerKind,
    class_defaults,
    has_continuous_timesteps,
    with_limits,
)

OUTPUTS = {"epsilon": "edm", "v_prediction": "v"}
"""Stock EDM schedulers' names of outputs, and the names here."""

POWERS = {"karras": lambda rho: rho, "exponential": lambda rho: math.inf}  # of a sigma_schedule, from its rho
NUMBERS = ("sigma_min", "sigma_max", "sigma_data", "rho")
ATAN = "CosineDPMSolverMultistepScheduler"
ATAN_DEFAULTS = {
    "sigma_min": 0.3,
    "sigma_max": 500.0,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
    "rho": 7.0,
}
"""diffusers' defaults; it hides the class without torchsde."""

EULER = "EulerDiscreteScheduler"


def read(folder: Path, config: Mapping[str, Any]) -> Formulation:
    """Read a scheduler's config: its noise, what the network predicts, and the scheduler's limits.

    Raises:
        UserError: it is damaged, or has another prediction type.
    """
    name = config["_class_name"]
    defaults = ATAN_DEFAULTS if name == ATAN else class_defaults(name)
    taken = {field: config.get(field, default) for field, default in defaults.items()}
    if name == EULER:
        taken |= _of_euler(folder, config)
    numbers = [taken[field] for field in NUMBERS]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        listed = ", ".join(f"{field}: {str(taken[field])[:30]}" for field in NUMBERS)
        raise UserError(f"{folder}/scheduler is damaged ({listed}): restore it")
    for field, known in (("prediction_type", OUTPUTS), ("sigma_schedule", POWERS)):
        if str(taken[field]) not in known:
            value = str(taken[field])[:50]
            raise UserError(f"{folder}/scheduler: {field} is {value!r}, expected one of {', '.join(known)}")
    try:
        low, high, deviation, rho = map(float, numbers)
        schedule = Karras(
            low,
            high,
            POWERS[taken["sigma_schedule"]](rho),
            sigma_data=deviation,
            c_noise="atan" if name == ATAN else "log",
        )
    except (UserError, OverflowError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({error}): restore it") from error
    output = PARAMETERIZATIONS[OUTPUTS[taken["prediction_type"]]]
    return with_limits(Formulation(schedule, output, 0.0, num_train_timesteps=1), folder, taken)


def _of_euler(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the EDM scheduler that is equivalent to an Euler scheduler with continuous timesteps."""
    try:
        levels = EulerDiscreteScheduler(**{key: config[key] for key in KEYS if key in config}).sigmas
        ends = {"sigma_min": float(levels[-2]), "sigma_max": float(levels[0])}
    except (NotImplementedError, TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({' '.join(str(error).split())[:200]}): restore it") from error
    if any(config.get(f"use_{grid}_sigmas") for grid in ("karras", "exponential", "beta")):
        ends |= {end: config[end] for end in ends if config.get(end) is not None}
    spaced = "exponential" if config.get("use_exponential_sigmas") else "karras"
    return {**ends, "sigma_data": 1.0, "rho": 7.0, "sigma_schedule": spaced}


def write(denoiser: Denoiser, steps: int | None, spacing: Spacing = "stock") -> EDMEulerScheduler | None:
    """The scheduler of EDM's noise; None for another kind, and for a network that receives an angle."""
    schedule, names = denoiser.schedule, {ours: stock for stock, ours in OUTPUTS.items()}
    output = names.get(denoiser.parameterization.name)
    if not isinstance(schedule, Karras) or schedule.c_noise != "log" or output is None:
        return None
    if denoiser.num_train_timesteps != 1 or denoiser.offset:
        return None
    last = float(schedule.level(torch.tensor(1 / steps, dtype=torch.float64))) if steps else schedule.sigma_min
    by_place = schedule.spacing == "angle" and steps is not None  # u of the equation above
    exponential = schedule.power == math.inf and not by_place
    return EDMEulerScheduler(
        sigma_min=last,
        sigma_max=schedule.sigma_max,
        sigma_data=schedule.sigma_data,
        sigma_schedule="exponential" if exponential else "karras",
        rho=1.0 if exponential or by_place else schedule.power,
        prediction_type=cast(Any, output),
    )


def missed(denoiser: Denoiser, counts: Sequence[int]) -> tuple[Sequence[int], str]:
    """The smallest step count, for which a student's scheduler is written, if it visits other times; and a remedy."""
    schedule, steps = denoiser.schedule, min(counts)
    assert isinstance(schedule, Karras)  # ensured by write
    t = torch.tensor([1, 1 / steps], dtype=torch.float64)
    first, last = torch.atan2(schedule.level(t), torch.full_like(t, schedule.sigma_data)).tolist()
    places = "(a[0].tan() - a.tan()) / (a[0].tan() - a[-1].tan())"
    return (
        [steps] if schedule.spacing == "angle" and steps > 2 else [],
        f"call scheduler.set_timesteps({steps}, sigmas={places}) with a = torch.linspace({first!r}, {last!r}, {steps}, "
        "dtype=torch.float64)",
    )


EDM = SchedulerKind(
    classes=("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", ATAN, EULER),
    read=read,
    write=write,
    missed=missed,
    fields=frozenset({*NUMBERS, *OF_A_TABLE, "sigma_schedule"}),
    takes=lambda config: config["_class_name"] != EULER or has_continuous_timesteps(config),
)
