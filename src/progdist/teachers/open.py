"""A teacher from a stock diffusers pipeline folder: everything inferred from the folder's own configs.

    model_index.json            which parts there are
    unet/ or transformer/       one of NETWORKS: size, channels, classes; safetensors, no pickle
    scheduler/                  the betas (or a rectified flow), the number of timesteps, what the output means
    vae/ or vqvae/              of a latent model: the data are encoded before anything else
    text_encoder/ tokenizer/    of a text-conditional one: so are the captions

What the folder says is also tried on data: the output is read in every way, and the timestep shifted by one either
way, and what denoises best must be what the folder says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.schedule import Discrete, RectifiedFlow, Schedule
from progdist.methods.guidance import Clipped, Thresholded
from progdist.models.autoencoder import Autoencoder
from progdist.models.model import Model
from progdist.models.prompts import USUAL_SIDES, network_interface, text_pipeline
from progdist.models.safe_loading import NETWORKS, load_component, network_class, read_autoencoder
from progdist.models.unet import class_count, without_variance
from progdist.students.folder import load
from progdist.students.pipeline_folder import check_teacher
from progdist.teachers.stock import interpret_scheduler

LIMITS = {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
"""The numbers by which stock schedulers clip and threshold, with diffusers' defaults."""

FETCHED = (
    "model_index.json",
    "progdist.json",
    *(f"{part}/*.json" for part in ("unet", "transformer", "vae", "vqvae", "scheduler")),
    *(f"{part}/*.safetensors" for part in ("unet", "transformer", "vae", "vqvae", "safety_checker", "guidance")),
    *(f"text_encoder{number}/{kind}" for number in ("", "_2", "_3") for kind in ("*.json", "*.safetensors")),
    *(f"tokenizer{number}/{kind}" for number in ("", "_2", "_3") for kind in ("*.json", "*.txt", "spiece.model")),
    *(f"{part}/*.json" for part in ("feature_extractor", "safety_checker")),
)
"""What is fetched of a model on the hub: no pickles, and no parts that are not used or copied."""


@dataclass(frozen=True)
class Teacher:
    """A model to distil, and how its own folder samples it.

    Attributes:
        model: the denoiser and its classes.
        summary: what was inferred, a line each.
        clip: the bound within which the folder's scheduler keeps denoised images; None where it does not.
        threshold: the quantile and the largest value of its dynamic thresholding, which takes the place of clipping.
    """

    model: Model
    summary: tuple[str, ...]
    clip: float | None = None
    threshold: tuple[float, float] | None = None

    def limited(self, denoiser: DenoiserProtocol) -> DenoiserProtocol:
        """A denoiser with its predictions kept within the limits of the folder's scheduler."""
        if self.threshold is not None:
            return Thresholded(denoiser, *self.threshold)
        return denoiser if self.clip is None else Clipped(denoiser, self.clip)


def read_teacher(source_model: str, offset: float | None = None, size: tuple[int, int] | None = None) -> Teacher:
    """A model folder of ours, a stock diffusers pipeline folder, or `hub:owner/name[@revision]` on the hub.

    Args:
        source_model: the folder, or the name on the hub.
        offset: replaces that of the timestep, for networks that were trained with another convention.
        size: (height, width) of the images to make, where the network makes any size; as its pipeline's if not given.

    Raises:
        UserError: it is missing, damaged, or of a kind that cannot be distilled here.
    """
    folder = _resolve_folder(source_model)
    if (folder / "progdist.json").is_file():
        model = load(folder)
        model = model if offset is None else replace(model, denoiser=model.denoiser.with_offset(offset))
        return Teacher(model, (f"{folder}: a progdist model", *_describe(model, model.denoiser.schedule)))
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} has no model_index.json: give a folder that a diffusers pipeline's save_pretrained made"
        )
    index = read_json(folder / "model_index.json")
    part, kind_of_network = _network(folder, index)
    network = without_variance(load_component(folder, part, network_class(folder / part, kind_of_network)))
    scheduler = _config(folder, "scheduler", "scheduler_config.json")
    autoencoder = read_autoencoder(folder)
    text = text_pipeline(folder, network, _latent_sides(autoencoder, size))
    tokens = text.tokens(network) if text else None
    schedule, parameterization, usual = interpret_scheduler(folder, scheduler, tokens)
    timesteps = scheduler.get("num_train_timesteps", 1000)
    offset = usual if offset is None else offset
    if text:
        check_teacher(folder, text, network, autoencoder)
    denoiser = Denoiser(
        network, schedule, parameterization, timesteps=timesteps, offset=offset, **network_interface(network)
    )
    classes = _classes(index, class_count(network))
    model = Model(denoiser, classes=classes, autoencoder=autoencoder, text=text)
    summary = (f"{folder}: {type(network).__name__} with {scheduler['_class_name']}", *_describe(model, schedule))
    clip, threshold = (None, None) if text else _limits(folder, scheduler)
    return Teacher(model, summary, clip, threshold)


def _latent_sides(autoencoder: Autoencoder | None, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the latents of images of a size, which FluxPipeline takes in squares of two by two."""
    if autoencoder is None or size is None:
        return USUAL_SIDES
    height, width = (2 * (side // (2 * autoencoder.factor)) for side in size)
    return height, width


def _limits(folder: Path, config: Mapping[str, Any]) -> tuple[float | None, tuple[float, float] | None]:
    """The bound within which a scheduler clips, and the numbers of its dynamic thresholding; None where it does not."""
    images = config.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")
    numbers = [config.get(name, usual) for name, usual in LIMITS.items()]
    if not all(isinstance(number, int | float) and number > 0 for number in numbers):
        raise UserError(f"{folder}/scheduler is damaged ({dict(zip(LIMITS, numbers, strict=True))}): restore it")
    bound, ratio, most = map(float, numbers)
    if config.get("thresholding", False):
        return None, (min(ratio, 1.0), most)
    return (bound if config.get("clip_sample", images) and images else None), None


def _resolve_folder(source_model: str) -> Path:
    """The folder itself, or that of a model on the hub once it is fetched."""
    if source_model.startswith("hub:"):
        return _download(source_model)
    folder = Path(source_model).expanduser()
    if folder.is_dir():
        return folder
    hint = (
        f", or hub:{source_model} if you mean a model on the Hugging Face hub" if source_model.count("/") == 1 else ""
    )
    raise UserError(f"{source_model} is no folder: give a diffusers pipeline folder{hint}")


def _download(source_model: str) -> Path:
    """The folder of `hub:owner/name[@revision]`, of which only FETCHED is fetched."""
    from huggingface_hub import snapshot_download

    name, _, revision = source_model.removeprefix("hub:").partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FETCHED)))
    except Exception as error:  # the library raises many kinds: all mean that it cannot be had
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{source_model} cannot be fetched ({reason}): expected hub:owner/name or hub:owner/name@rev"
        ) from error


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
    listed = ", ".join(f"{name}: {class_name}" for name, class_name in sorted(parts.items())) or "nothing"
    raise UserError(
        f"{folder} holds {listed}: only pipelines of a network that is one of {', '.join(NETWORKS)} can be distilled"
    )


def _classes(index: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the classes: those that the pipeline tells, else numbers."""
    names = index.get("id2label")
    names = names if isinstance(names, dict) else {}
    return tuple(str(names.get(str(number), number)) for number in range(count))


def _describe(model: Model, schedule: Schedule) -> tuple[str, ...]:
    """What was inferred, for people."""
    denoiser, latent = model.denoiser, model.autoencoder
    image, seen = ("x".join(map(str, shape)) for shape in (model.image, model.shape))
    count = sum(parameter.numel() for parameter in denoiser.network.parameters())
    last = schedule.alphas_cumprod[-1] if isinstance(schedule, Discrete) else 0.0
    return (
        f"{count:,} parameters, images of {image}, "
        + ("of captions" if model.text else f"{len(model.classes)} classes" if model.classes else "unconditional"),
        *((f"a latent model: {type(latent.network).__name__} makes latents of {seen}",) if latent else ()),
        f"{type(schedule).__name__} schedule of {denoiser.timesteps} timesteps, "
        + (f"shifted by {schedule.shift:g}, " if isinstance(schedule, RectifiedFlow) and schedule.shift != 1 else "")
        + "output "
        f"{denoiser.parameterization.name}, timestep = {denoiser.timesteps} "
        f"{'sigma' if isinstance(schedule, RectifiedFlow) else 't'} - {denoiser.offset:g}",
        *((f"distilled for {', '.join(map(str, model.steps))} steps",) if model.steps else ()),
        *((f"its schedule ends at a signal-to-noise ratio of {last / (1 - last):.1e}, not 0",) if last > 0 else ()),
    )
