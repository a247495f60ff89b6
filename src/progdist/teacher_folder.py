"""A teacher from a stock diffusers pipeline folder: everything inferred from the folder's own configs.

    model_index.json            which parts there are
    unet/                       a UNet2DModel: image size, channels, classes; its weights as safetensors, never a pickle
    scheduler/                  the betas (or a rectified flow), the number of timesteps, what the output means

What the folder says is also tried on data: the output is read in every way, and the timestep shifted by one either
way, and the reading that denoises best must be the folder's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from progdist._errors import UserError
from progdist.checkpoint import read_json, read_tensors
from progdist.denoiser import Denoiser
from progdist.model_folder import PREDICTION_TYPES, Model, load
from progdist.network import image_shape
from progdist.parameterization import PARAMETERIZATIONS, Parameterization
from progdist.schedule import Discrete, RectifiedFlow, Schedule

DISCRETE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
"""Stock schedulers whose noise is a table of betas."""

FLOW = ("FlowMatchEulerDiscreteScheduler",)


@dataclass(frozen=True)
class Teacher:
    """A model to distil, and how its own folder samples it.

    Attributes:
        model: the denoiser and its classes.
        clip: whether the folder's scheduler keeps denoised images within [-1, 1].
        told: what was inferred, a line each.
    """

    model: Model
    clip: bool
    told: tuple[str, ...]


def read_teacher(place: str, offset: float | None = None) -> Teacher:
    """A model folder of ours, a stock diffusers pipeline folder, or a name on the Hugging Face hub.

    `offset` replaces that of the timestep, for networks that were trained with another convention.

    Raises:
        UserError: it is missing, damaged, or of a kind that cannot be distilled here.
    """
    folder = _found(place)
    if (folder / "progdist.json").is_file():
        model = load(folder)
        return Teacher(model, False, (f"{folder}: a progdist model", *_describe(model, model.denoiser.schedule)))
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} has no model_index.json: give a folder that a diffusers pipeline's save_pretrained made"
        )
    index = read_json(folder / "model_index.json")
    network = _network(folder, index)
    scheduler = _config(folder, "scheduler", "scheduler_config.json")
    schedule, kind, usual = _meaning(folder, scheduler)
    timesteps = int(scheduler.get("num_train_timesteps", 1000))
    offset = usual if offset is None else offset
    denoiser = Denoiser(network, schedule, kind, timesteps=timesteps, offset=offset)
    count = int(network.config["num_class_embeds"] or 0)
    model = Model(denoiser, classes=tuple(map(str, range(count))))
    clip = bool(scheduler.get("clip_sample", scheduler.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")))
    told = (f"{folder}: UNet2DModel with {scheduler['_class_name']}", *_describe(model, schedule))
    return Teacher(model, clip and not isinstance(schedule, RectifiedFlow), told)


def _found(place: str) -> Path:
    """The folder itself, fetched from the hub if it is a name there."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    if place.count("/") == 1 and not place.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(place, ignore_patterns=["*.bin", "*.ckpt", "*.pt", "*.msgpack"]))
        except Exception as error:  # the library raises many kinds: all mean that it cannot be had
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{place} is no folder here, and the hub does not give it ({reason})") from error
    raise UserError(f"{place} is no folder: give a diffusers pipeline folder, or a name on the hub (owner/model)")


def _config(folder: Path, part: str, name: str) -> dict[str, Any]:
    if not (folder / part / name).is_file():
        raise UserError(f"{folder} lacks {part}/{name}: restore the file, or save the pipeline again")
    return read_json(folder / part / name)


def _network(folder: Path, index: Mapping[str, Any]) -> UNet2DModel:
    """The network with its weights, in evaluation mode."""
    parts = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    if parts.get("unet") != "UNet2DModel":
        held = ", ".join(f"{name}: {kind}" for name, kind in sorted(parts.items())) or "nothing"
        raise UserError(f"{folder} holds {held}: only pipelines of a UNet2DModel can be distilled for now")
    config = _config(folder, "unet", "config.json")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    pickled = [name for kind in ("*.bin", "*.ckpt", "*.pt") for name in sorted((folder / "unet").glob(kind))]
    if not path.is_file() and pickled:
        raise UserError(
            f"{pickled[0]} is a pickle, which can run code and is never loaded: save the pipeline again with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    if not path.is_file():
        raise UserError(f"{folder} lacks unet/{path.name}: restore the file, or save the pipeline again")
    try:
        network = cast(UNet2DModel, UNet2DModel.from_config(config))
        network.load_state_dict(read_tensors(path))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{folder}/unet is damaged ({reason}): restore it, or save the pipeline again") from error
    return network.eval()


def _meaning(folder: Path, config: Mapping[str, Any]) -> tuple[Schedule, Parameterization, float]:
    """The schedule, what the output means, and the timestep's offset, from a scheduler's config."""
    name = config.get("_class_name")
    if name in FLOW:
        return RectifiedFlow(), PARAMETERIZATIONS["velocity"], 0.0
    if name not in DISCRETE:
        raise UserError(f"{folder} has scheduler {name}: expected one of {', '.join((*DISCRETE, *FLOW))}")
    kinds = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    kind = config.get("prediction_type", "epsilon")
    if kind not in kinds:
        raise UserError(f"{folder}/scheduler has prediction_type {kind!r}: expected one of {', '.join(kinds)}")
    try:
        known = {key: value for key, value in config.items() if key.startswith(("beta", "trained_betas", "num_train"))}
        known["rescale_betas_zero_snr"] = bool(config.get("rescale_betas_zero_snr", False))
        table = DDPMScheduler.from_config({**known, "_class_name": "DDPMScheduler"})
        schedule = Discrete(tuple(cast(Any, table).alphas_cumprod.double().tolist()))
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({' '.join(str(error).split())[:200]}): restore it") from error
    return schedule, PARAMETERIZATIONS[kinds[kind]], 1.0


def _describe(model: Model, schedule: Schedule) -> tuple[str, ...]:
    """What was inferred, for people."""
    network, denoiser = cast(UNet2DModel, model.denoiser.network), model.denoiser
    shape = "x".join(map(str, image_shape(network) or ()))
    count = sum(parameter.numel() for parameter in network.parameters())
    kind = next(name for name, value in PARAMETERIZATIONS.items() if value is denoiser.parameterization)
    last = schedule.alphas_cumprod[-1] if isinstance(schedule, Discrete) else 0.0
    return (
        f"{count:,} parameters, images of {shape}, "
        + (f"{len(model.classes)} classes" if model.classes else "unconditional"),
        f"{type(schedule).__name__} schedule of {denoiser.timesteps} timesteps, output {kind}, timestep = "
        f"{denoiser.timesteps} t - {denoiser.offset:g}",
        *((f"its schedule ends at a signal-to-noise ratio of {last / (1 - last):.1e}, not 0",) if last > 0 else ()),
    )
