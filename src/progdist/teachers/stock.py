r"""The schedule that a stock scheduler's config describes: a table of betas, or a rectified flow.

A flow may shift its times by the size of the image (dynamic shifting): of n image tokens, between n_0 and n_1,

    mu = base_shift + (max_shift - base_shift) (n - n_0) / (n_1 - n_0),    s = e^mu, or mu itself

What a config says of the steps alone (`timestep_spacing`, `use_karras_sigmas`, `shift_terminal` and the like) is of its
own sampler, and is passed over: the chain has a grid of its own.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import MAX_TIMESTEPS
from progdist.diffusion.parameterization import PARAMETERIZATIONS, Parameterization
from progdist.diffusion.schedule import Discrete, RectifiedFlow, Schedule
from progdist.models.model import PREDICTION_TYPES

DISCRETE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
"""Stock schedulers whose noise is a table of betas."""

TABLE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""What a stock scheduler's table is made from."""

FLOW = ("FlowMatchEulerDiscreteScheduler",)

DYNAMIC = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
"""By what a flow's stock scheduler shifts at the size of an image, with diffusers' defaults."""


def interpret_scheduler(
    folder: Path, config: Mapping[str, Any], tokens: int | None
) -> tuple[Schedule, Parameterization, float]:
    """The schedule, what the output means, and the timestep's offset, from a stock scheduler's config.

    Args:
        folder: of the pipeline.
        config: of its scheduler.
        tokens: of an image, by which the pipeline shifts a flow's times; None where it knows of no such shift.

    Raises:
        UserError: it is damaged, or none that is known.
    """
    _check_timesteps(folder, config)
    name = config.get("_class_name")
    if name in FLOW:
        return _flow(folder, config, tokens), PARAMETERIZATIONS["velocity"], 0.0
    if name not in DISCRETE:
        raise UserError(f"{folder} has scheduler {name}: expected one of {', '.join((*DISCRETE, *FLOW))}")
    kinds = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    parameterization = config.get("prediction_type", "epsilon")
    if parameterization not in kinds:
        raise UserError(
            f"{folder}/scheduler has prediction_type {parameterization!r}: expected one of {', '.join(kinds)}"
        )
    try:
        known = {key: config[key] for key in TABLE if key in config}
        known["rescale_betas_zero_snr"] = bool(config.get("rescale_betas_zero_snr", False))
        table = DDPMScheduler.from_config({**known, "_class_name": "DDPMScheduler"})
        schedule = Discrete(tuple(cast(Any, table).alphas_cumprod.double().tolist()))
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({' '.join(str(error).split())[:200]}): restore it") from error
    return schedule, PARAMETERIZATIONS[kinds[parameterization]], 1.0


def _check_timesteps(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a number of timesteps that no model has, before a table of them is made."""
    count = config.get("num_train_timesteps", 1000)
    if not isinstance(count, int) or not 1 <= count <= MAX_TIMESTEPS:
        raise UserError(f"{folder}/scheduler is damaged (num_train_timesteps is {str(count)[:50]}): restore it")


def _flow(folder: Path, config: Mapping[str, Any], tokens: int | None) -> RectifiedFlow:
    """The rectified flow of a stock scheduler, whose times are shifted towards noise."""
    dynamic = config.get("use_dynamic_shifting", False)
    if dynamic and tokens is None:
        raise UserError(
            f"{folder}/scheduler shifts its times by the size of each image (use_dynamic_shifting), which only its "
            "pipeline knows: set it to false, and shift to the number that is used at your size"
        )
    if config.get("invert_sigmas"):
        raise UserError(
            f"{folder}/scheduler has invert_sigmas, so that its flow is data at 1: expected one that is noise there"
        )
    numbers = {name: config.get(name, usual) for name, usual in (DYNAMIC if dynamic else {"shift": 1.0}).items()}
    try:
        shift = _dynamic_shift(tokens, config, **numbers) if dynamic and tokens else float(numbers["shift"])
    except (TypeError, ValueError, ArithmeticError):
        shift = 0.0
    if not 0 < shift < 1000:
        raise UserError(f"{folder}/scheduler is damaged ({str(numbers)[:150]}): restore it")
    return RectifiedFlow(shift)


def _dynamic_shift(
    tokens: int,
    config: Mapping[str, Any],
    *,
    base_shift: float,
    max_shift: float,
    base_image_seq_len: int,
    max_image_seq_len: int,
) -> float:
    """The shift that stock pipelines use at a number of image tokens (diffusers' `calculate_shift`)."""
    slope = (max_shift - base_shift) / (max_image_seq_len - base_image_seq_len)
    mu = base_shift + slope * (tokens - base_image_seq_len)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
