"""Stock schedulers: how to read a teacher's config, and which scheduler to write for its students.

This file has DDPM and its relatives, with a table of betas; `progdist.teachers.flow` has rectified flows,
`progdist.teachers.edm` EDM's noise, and `progdist.teachers.score` that of score-based networks. To add a kind, write a
file with its `SchedulerKind`, and add a line to `progdist.teachers.SCHEDULERS`.

A field of a config is read (FIELDS), belongs to the scheduler's own steps (STEPS) and is ignored, since the chain has
its own grid, or is ignored with a note. Fields that the scheduler's class does not take, which diffusers keeps from
another scheduler's config, have no effect here or there.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_heun_discrete import betas_for_alpha_bar
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.parameterization import PREDICTION_TYPES, Parameterization, as_parameterization
from progdist.diffusion.schedule import Discrete, Schedule, VariancePreserving
from progdist.methods.guidance import Clipped, Thresholded
from progdist.models.conditioning import Spacing
from progdist.models.networks import kind_of

KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
"""The fields from which a stock scheduler's table is made."""

OUTPUTS = ("sample", "epsilon", "v_prediction")  # prediction types of such schedulers
LIMITS = {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
"""The numbers by which stock schedulers clip and threshold, with diffusers' defaults."""

LARGEST = 1e9  # upper limit of these numbers
FLAGS = ("clip_sample", "thresholding", "rescale_betas_zero_snr", "use_flow_sigmas")  # fields that are true or false
SHIFT = "snr_shift_scale"  # in CogVideoX's schedulers: the divisor of the table's signal-to-noise ratio
FIELDS = frozenset({*KEYS, *LIMITS, *FLAGS, SHIFT, "prediction_type", "timestep_type"})
"""The fields read from the config of a scheduler with a table."""

STEPS = frozenset((
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "skip_prk_steps", "variance_type", "eta", "tau_func", "rho",
    "noise_sampler_seed", "stochastic_sampling", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "sigma_min", "sigma_max", "interpolation_type", "final_sigmas_type", "lambda_min_clipped",
    "euler_at_final", "lower_order_final", "algorithm_type", "solver_order", "solver_type", "solver_p", "predict_x0",
    "disable_corrector", "predictor_order", "corrector_order", "shift_terminal", "time_shift_type",
    "original_inference_steps", "timestep_scaling",
))  # fmt: skip
"""Fields of a stock scheduler's own steps: which times it visits, by which method."""

SOLVERS = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
"""Schedulers with a table of betas, or with `use_flow_sigmas` a rectified flow."""

FEW_STEPS = (
    "LCMScheduler",
    "TCDScheduler",
    "CMStochasticIterativeScheduler",
    "SCMScheduler",
    "FlowMatchLCMScheduler",
)
"""Schedulers of models that were already distilled to a few steps, the only ones that their networks know."""


@dataclass(frozen=True)
class Formulation:
    """What a scheduler's config says about a network."""

    schedule: Schedule  # of the noise
    parameterization: Parameterization  # what the network's output means
    offset: float  # of the timestep (see `progdist.diffusion.denoiser`)
    num_train_timesteps: int | None = None  # 1 for a network that receives a noise level; None for the config's
    limited: Callable[[DenoiserProtocol], DenoiserProtocol] = lambda denoiser: denoiser  # applies its limits
    limits: str = ""  # these limits in words; "" for none
    notes: tuple[str, ...] = ()  # what is ignored, as lines


@dataclass(frozen=True)
class SchedulerKind:
    """A family of stock schedulers."""

    classes: tuple[str, ...]  # the names of the schedulers that it reads
    # (folder of the pipeline, config of its scheduler) -> its formulation; a UserError for a damaged config
    read: Callable[[Path, Mapping[str, Any]], Formulation]
    # (denoiser, steps, spacing) -> the stock scheduler that visits our grid in this many steps (None: any number) in a
    # pipeline with this spacing of times (see `models.conditioning.Spacing`), or None for a denoiser of another kind
    write: Callable[[Denoiser, int | None, Spacing], SchedulerMixin | None]
    # (denoiser, its step counts) -> those at which that scheduler visits other times, and a remedy
    missed: Callable[[Denoiser, Sequence[int]], tuple[Sequence[int], str]] = lambda denoiser, counts: ((), "")
    fields: frozenset[str] = frozenset()  # of the config, that it reads
    takes: Callable[[Mapping[str, Any]], bool] = lambda config: True  # whether a config of these classes is of the kind


def read_formulation(kinds: "list[SchedulerKind]", folder: Path, config: Mapping[str, Any]) -> Formulation:
    """Read a stock scheduler's config by its kind, with a note about unknown fields.

    Raises:
        UserError: it is damaged, or none of the kinds reads its class.
    """
    name = str(config.get("_class_name"))
    if kind := next((kind for kind in kinds if name in kind.classes and kind.takes(config)), None):
        known = STEPS.union(*(each.fields for each in kinds))
        unknown = [field for field in config if not field.startswith("_") and field not in known]
        formulation = kind.read(folder, config)
        note = (f"{name} has {_listed(unknown)}, which is ignored",) if unknown else ()
        return replace(formulation, notes=(*formulation.notes, *note))
    if name in FEW_STEPS:
        raise UserError(
            f"{folder} has scheduler {name}, of a model that was already distilled to a few steps: give the teacher "
            "that it was made from"
        )
    expected = ", ".join(dict.fromkeys(each for kind in kinds for each in kind.classes))
    raise UserError(f"{folder} has scheduler {name[:50]}, expected one of {expected}")


def _listed(fields: list[str]) -> str:
    return ", ".join(field[:50] for field in fields[:6]) + (" and more" if len(fields) > 6 else "")


def class_defaults(name: str) -> dict[str, Any]:
    """The fields of a stock scheduler class, with its defaults."""
    # without torchsde diffusers hides DPM-Solver's SDE, whose table is made like its relatives'
    stock = getattr(diffusers, "KDPM2DiscreteScheduler" if name == "DPMSolverSDEScheduler" else name)
    return {field: each.default for field, each in inspect.signature(stock).parameters.items()}


def has_flow_sigmas(config: Mapping[str, Any]) -> bool:
    """Whether a solver's noise is a rectified flow instead of a table."""
    return config["_class_name"] in SOLVERS and config.get("use_flow_sigmas") is True


def has_continuous_timesteps(config: Mapping[str, Any]) -> bool:
    """Whether an Euler scheduler passes log(sigma) / 4 to its network, like EDM: only with v_prediction."""
    said = (config["_class_name"], config.get("timestep_type"), config.get("prediction_type"))
    return said == ("EulerDiscreteScheduler", "continuous", "v_prediction")


def read(folder: Path, config: Mapping[str, Any]) -> Formulation:
    """Read the table of a scheduler's config, what the network predicts, and the scheduler's limits."""
    name, defaults = config["_class_name"], class_defaults(config["_class_name"])
    taken = {field: config.get(field, default) for field, default in defaults.items() if field in FIELDS}
    for field in FLAGS:
        if not isinstance(taken.get(field, False), bool):
            raise UserError(
                f"{folder}/scheduler: {field} is {str(taken[field])[:50]!r}, expected true or false: restore it"
            )
    prediction_type = taken.get("prediction_type", "epsilon")
    if prediction_type not in OUTPUTS:
        flow = ", or flow_prediction with use_flow_sigmas" if name in SOLVERS else ""
        value = str(prediction_type)[:50]
        raise UserError(f"{folder}/scheduler: prediction_type is {value!r}, expected one of {', '.join(OUTPUTS)}{flow}")
    if config.get("predict_epsilon") is False:
        raise UserError(
            f"{folder}/scheduler has predict_epsilon false, as early versions of diffusers wrote for networks that "
            'predict the image: replace it with "prediction_type": "sample"'
        )
    formulation = Formulation(
        Discrete(_table(folder, taken | {"_class_name": name})), as_parameterization(prediction_type), 1.0
    )
    absent = [field for field in FIELDS - defaults.keys() if field not in LIMITS and _matters(field, config.get(field))]
    note = (f"{name} does not take {_listed(sorted(absent))}, which is ignored",) if absent else ()
    return replace(with_limits(formulation, folder, taken), notes=note)


def _matters(field: str, value: object) -> bool:
    """Whether a value differs from the behaviour of a scheduler that does not take the field."""
    return value not in (None, False, {"prediction_type": "epsilon", "timestep_type": "discrete"}.get(field))


def _table(folder: Path, taken: Mapping[str, Any]) -> tuple[float, ...]:
    """alpha_bar of every timestep, computed as in diffusers."""
    numbers = {key: taken[key] for key in KEYS if key in taken}
    count, betas = numbers["num_train_timesteps"], numbers["trained_betas"]
    if isinstance(betas, list) and len(betas) != count:
        raise UserError(
            f"{folder}/scheduler has {len(betas)} trained_betas, expected as many as its num_train_timesteps, {count}: "
            "restore it"
        )
    try:
        if betas is None and numbers["beta_schedule"] == "exp":  # only in Heun's scheduler
            numbers["trained_betas"] = betas_for_alpha_bar(count, alpha_transform_type="exp").tolist()
        stock: Any = DDPMScheduler
        if SHIFT in taken:
            stock, numbers[SHIFT] = getattr(diffusers, taken["_class_name"]), taken[SHIFT]
        table = stock(**numbers).alphas_cumprod.double().tolist()
        Discrete(tuple(table))
    except (NotImplementedError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({' '.join(str(error).split())[:200]}): restore it") from error
    return tuple(table)


def with_limits(formulation: Formulation, folder: Path, taken: Mapping[str, Any]) -> Formulation:
    """Add the scheduler's bound for denoised images, or its dynamic thresholding."""
    numbers = {name: taken.get(name, default) for name, default in LIMITS.items()}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < LARGEST:
            raise UserError(
                f"{folder}/scheduler: {name} is {str(number)[:50]!r}, expected a positive number: restore it"
            )
    bound, ratio, largest = map(float, numbers.values())
    if taken.get("thresholding"):
        limited = partial(Thresholded, ratio=min(ratio, 1.0), max_value=largest)
        return replace(formulation, limited=limited, limits="thresholds denoised images dynamically")
    if taken.get("clip_sample"):
        limits = f"clips denoised images to [-{bound:g}, {bound:g}]"
        return replace(formulation, limited=partial(Clipped, bound=bound), limits=limits)
    return formulation


def write(denoiser: Denoiser, steps: int | None, spacing: Spacing = "stock") -> DDIMScheduler | None:
    """The DDIM scheduler that visits our grid if the step count divides T; None for another kind.

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


def missed(denoiser: Denoiser, counts: Sequence[int]) -> tuple[Sequence[int], str]:
    """The step counts that do not divide T."""
    count = denoiser.num_train_timesteps
    remedy = f"sample it with progdist, or distil to step counts that divide its {count} timesteps"
    return [steps for steps in counts if count % steps], remedy


TABLE = SchedulerKind(
    classes=(
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "PNDMScheduler",
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        *SOLVERS,
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "DPMSolverSDEScheduler",
    ),
    read=read,
    write=write,
    missed=missed,
    fields=FIELDS,
    takes=lambda config: not has_flow_sigmas(config) and not has_continuous_timesteps(config),
)
