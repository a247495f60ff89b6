"""A teacher from a stock diffusers pipeline folder: everything inferred from the folder's own configs.

    model_index.json            which parts there are
    unet/ or transformer/       a UNet2DModel or DiTTransformer2DModel: size, channels, classes; safetensors, no pickle
    scheduler/                  the betas (or a rectified flow), the number of timesteps, what the output means
    vae/ or vqvae/              of a latent model: the data are encoded before anything else

What the folder says is also tried on data: the output is read in every way, and the timestep shifted by one either
way, and the reading that denoises best must be the folder's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from progdist._errors import UserError
from progdist.checkpoint import read_json
from progdist.denoiser import MOST_TIMESTEPS, Denoiser
from progdist.model import PREDICTION_TYPES, Model
from progdist.model_folder import load, read_autoencoder
from progdist.network import class_count
from progdist.parameterization import PARAMETERIZATIONS, Parameterization
from progdist.parts import NETWORKS, read_part
from progdist.schedule import Discrete, RectifiedFlow, Schedule

DISCRETE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
"""Stock schedulers whose noise is a table of betas."""

TABLE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""What a stock scheduler's table is made from."""

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
    part, kind_of_network = _network(folder, index)
    network = read_part(folder, part, NETWORKS[kind_of_network])
    scheduler = _config(folder, "scheduler", "scheduler_config.json")
    _believable(folder, scheduler)
    schedule, kind, usual = _meaning(folder, scheduler)
    timesteps = scheduler.get("num_train_timesteps", 1000)
    offset = usual if offset is None else offset
    denoiser = Denoiser(network, schedule, kind, timesteps=timesteps, offset=offset)
    model = Model(denoiser, classes=_classes(index, class_count(network)), autoencoder=read_autoencoder(folder))
    clip = bool(scheduler.get("clip_sample", scheduler.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")))
    told = (f"{folder}: {type(network).__name__} with {scheduler['_class_name']}", *_describe(model, schedule))
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


def _network(folder: Path, index: Mapping[str, Any]) -> tuple[str, str]:
    """Where the network lies in the folder, and its class."""
    parts = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    for name in ("unet", "transformer"):
        if parts.get(name) in NETWORKS:
            return name, parts[name]
    held = ", ".join(f"{name}: {kind}" for name, kind in sorted(parts.items())) or "nothing"
    raise UserError(f"{folder} holds {held}: only pipelines of a UNet2DModel or DiTTransformer2DModel can be distilled")


def _classes(index: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the classes: those that the pipeline tells, else numbers."""
    names = index.get("id2label")
    names = names if isinstance(names, dict) else {}
    return tuple(str(names.get(str(number), number)) for number in range(count))


def _believable(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a number of timesteps that no model has, before a table of them is made."""
    count = config.get("num_train_timesteps", 1000)
    if not isinstance(count, int) or not 1 <= count <= MOST_TIMESTEPS:
        raise UserError(f"{folder}/scheduler is damaged (num_train_timesteps is {str(count)[:50]}): restore it")


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
        known = {key: config[key] for key in TABLE if key in config}
        known["rescale_betas_zero_snr"] = bool(config.get("rescale_betas_zero_snr", False))
        table = DDPMScheduler.from_config({**known, "_class_name": "DDPMScheduler"})
        schedule = Discrete(tuple(cast(Any, table).alphas_cumprod.double().tolist()))
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({' '.join(str(error).split())[:200]}): restore it") from error
    return schedule, PARAMETERIZATIONS[kinds[kind]], 1.0


def _describe(model: Model, schedule: Schedule) -> tuple[str, ...]:
    """What was inferred, for people."""
    denoiser, latent = model.denoiser, model.autoencoder
    image, seen = ("x".join(map(str, shape)) for shape in (model.image, model.shape))
    count = sum(parameter.numel() for parameter in denoiser.network.parameters())
    kind = next(name for name, value in PARAMETERIZATIONS.items() if value is denoiser.parameterization)
    last = schedule.alphas_cumprod[-1] if isinstance(schedule, Discrete) else 0.0
    return (
        f"{count:,} parameters, images of {image}, "
        + (f"{len(model.classes)} classes" if model.classes else "unconditional"),
        *((f"a latent model: {type(latent.network).__name__} makes latents of {seen}",) if latent else ()),
        f"{type(schedule).__name__} schedule of {denoiser.timesteps} timesteps, output {kind}, timestep = "
        f"{denoiser.timesteps} t - {denoiser.offset:g}",
        *((f"its schedule ends at a signal-to-noise ratio of {last / (1 - last):.1e}, not 0",) if last > 0 else ()),
    )
