"""Stock schedulers: how a teacher's config is read, and what its students are written with.

Here are DDPM and its relatives, whose noise is a table of betas; `progdist.teachers.flow` has rectified flows. Adding a
kind is a file with its `SchedulerKind`, and its line in `progdist.teachers.SCHEDULERS`.

What a config says of the steps alone (`timestep_spacing`, `use_karras_sigmas`, `final_sigmas_type` and the like) is of
its own sampler, and is passed over: the chain has a grid of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.parameterization import PREDICTION_TYPES, Parameterization, as_parameterization
from progdist.diffusion.schedule import Discrete, Schedule, VariancePreserving
from progdist.methods.guidance import Clipped, Thresholded
from progdist.models.networks import kind_of

KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""What a stock scheduler's table is made from."""

OUTPUTS = ("sample", "epsilon", "v_prediction")  # what the network of such a scheduler predicts
LIMITS = {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
"""The numbers by which stock schedulers clip and threshold, with diffusers' defaults."""

CLIPPING = ("DDPMScheduler", "DDIMScheduler")  # schedulers that clip denoised images by default


@dataclass(frozen=True)
class Formulation:
    """What a scheduler's config says of a network."""

    schedule: Schedule  # of the noise
    parameterization: Parameterization  # what the network's output means
    offset: float  # of the timestep (see `progdist.diffusion.denoiser`)
    limited: Callable[[DenoiserProtocol], DenoiserProtocol] = lambda denoiser: denoiser  # within the bounds it keeps
    limits: str = ""  # what those are, for people; "" for none


@dataclass(frozen=True)
class SchedulerKind:
    """A family of stock schedulers."""

    classes: tuple[str, ...]  # the names of the schedulers that are read
    # (folder of the pipeline, config of its scheduler, image tokens) -> its formulation; the tokens are None where
    # the pipeline does not shift its times by the size of the image. Raises UserError for a damaged config.
    read: Callable[[Path, Mapping[str, Any], int | None], Formulation]
    # (denoiser, steps) -> the stock scheduler that visits our grid in so many steps (None: any number), or None where
    # the denoiser is of another kind
    write: Callable[[Denoiser, int | None], SchedulerMixin | None]


def read(folder: Path, config: Mapping[str, Any], tokens: int | None) -> Formulation:
    """The table of a scheduler's config, what the network predicts, and the scheduler's limits."""
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in OUTPUTS:
        raise UserError(
            f"{folder}/scheduler has prediction_type {prediction_type!r}: expected one of {', '.join(OUTPUTS)}"
        )
    try:
        numbers = {key: config[key] for key in KEYS if key in config}
        numbers["rescale_betas_zero_snr"] = bool(config.get("rescale_betas_zero_snr", False))
        table = DDPMScheduler.from_config({**numbers, "_class_name": "DDPMScheduler"})
        schedule = Discrete(tuple(cast(Any, table).alphas_cumprod.double().tolist()))
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({' '.join(str(error).split())[:200]}): restore it") from error
    formulation = Formulation(schedule, as_parameterization(prediction_type), 1.0)
    return _with_limits(formulation, folder, config)


def _with_limits(formulation: Formulation, folder: Path, config: Mapping[str, Any]) -> Formulation:
    """With the bound within which the scheduler clips denoised images, or its dynamic thresholding."""
    numbers = [config.get(name, default) for name, default in LIMITS.items()]
    if not all(isinstance(number, int | float) and number > 0 for number in numbers):
        raise UserError(f"{folder}/scheduler is damaged ({dict(zip(LIMITS, numbers, strict=True))}): restore it")
    bound, ratio, largest = map(float, numbers)
    own = formulation.schedule, formulation.parameterization, formulation.offset
    if config.get("thresholding", False):
        limited = partial(Thresholded, ratio=min(ratio, 1.0), max_value=largest)
        return Formulation(*own, limited, "thresholds denoised images dynamically")
    clips = config.get("_class_name") in CLIPPING
    if clips and config.get("clip_sample", True):
        return Formulation(*own, partial(Clipped, bound=bound), f"keeps denoised images within [-{bound:g}, {bound:g}]")
    return formulation


def write(denoiser: Denoiser, steps: int | None) -> DDIMScheduler | None:
    """The DDIM scheduler that visits our grid wherever the step count divides T; None for another kind.

    Its betas are the schedule's own at t = 1/T, ..., 1, and its timesteps are trailing.
    """
    output, count = denoiser.parameterization.name, denoiser.num_train_timesteps
    names = {PREDICTION_TYPES[name]: name for name in OUTPUTS}
    if not isinstance(denoiser.schedule, VariancePreserving) or output not in names or denoiser.offset != 1:
        return None
    t = torch.arange(count + 1, dtype=torch.float64) / count
    alpha_bar = denoiser.schedule.alpha(t) ** 2
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1].clone().index_fill_(0, torch.tensor(0), 1.0)
    kind = kind_of(denoiser.network)
    return DDIMScheduler(
        num_train_timesteps=count,
        trained_betas=betas.tolist(),
        timestep_spacing="trailing",
        prediction_type=cast(Any, names[output]),
        clip_sample=False,
        steps_offset=int(kind is not None and kind.prompt is not None),  # no effect, but text pipelines ask for 1
    )


TABLE = SchedulerKind(
    classes=(*CLIPPING, "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"),
    read=read,
    write=write,
)
