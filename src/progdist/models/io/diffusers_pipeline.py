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
from typing import Any, cast

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist.diffusion.denoiser import MAX_TIMESTEPS, Denoiser, DenoiserProtocol
from progdist.diffusion.parameterization import PARAMETERIZATIONS, Parameterization
from progdist.diffusion.schedule import Discrete, RectifiedFlow, Schedule
from progdist.distillation.guidance import Clipped, Thresholded
from progdist.models.io.folder import load
from progdist.models.io.safe_loading import NETWORKS, load_component, read_autoencoder
from progdist.models.model import PREDICTION_TYPES, Model
from progdist.models.text.folder import check_teacher
from progdist.models.text.pipeline import network_arguments, text_pipeline
from progdist.models.unet import class_count, without_variance

DISCRETE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
"""Stock schedulers whose noise is a table of betas."""

TABLE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""What a stock scheduler's table is made from."""

FLOW = ("FlowMatchEulerDiscreteScheduler",)

LIMITS = {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
"""The numbers by which stock schedulers clip and threshold, with diffusers' defaults."""

FETCHED = (
    "model_index.json",
    "progdist.json",
    *(f"{part}/*.json" for part in ("unet", "transformer", "vae", "vqvae", "scheduler")),
    *(f"{part}/*.safetensors" for part in ("unet", "transformer", "vae", "vqvae", "safety_checker", "guidance")),
    *(f"text_encoder{number}/{kind}" for number in ("", "_2") for kind in ("*.json", "*.safetensors")),
    *(f"{part}/{kind}" for part in ("tokenizer", "tokenizer_2") for kind in ("*.json", "*.txt")),
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


def read_teacher(source_model: str, offset: float | None = None) -> Teacher:
    """A model folder of ours, a stock diffusers pipeline folder, or `hub:owner/name[@revision]` on the hub.

    `offset` replaces that of the timestep, for networks that were trained with another convention.

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
    network = without_variance(load_component(folder, part, NETWORKS[kind_of_network]))
    scheduler = _config(folder, "scheduler", "scheduler_config.json")
    _check_timesteps(folder, scheduler)
    schedule, parameterization, usual = _interpret_scheduler(folder, scheduler)
    timesteps = scheduler.get("num_train_timesteps", 1000)
    offset = usual if offset is None else offset
    arguments, text, autoencoder = network_arguments(network), text_pipeline(folder, network), read_autoencoder(folder)
    if text:
        check_teacher(folder, network, autoencoder)
    denoiser = Denoiser(network, schedule, parameterization, timesteps=timesteps, offset=offset, arguments=arguments)
    classes = _classes(index, class_count(network))
    model = Model(denoiser, classes=classes, autoencoder=autoencoder, text=text)
    summary = (f"{folder}: {type(network).__name__} with {scheduler['_class_name']}", *_describe(model, schedule))
    clip, threshold = (None, None) if text else _limits(folder, scheduler)
    return Teacher(model, summary, clip, threshold)


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
        f"{folder} holds {listed}: only pipelines of a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel "
        "can be distilled"
    )


def _classes(index: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the classes: those that the pipeline tells, else numbers."""
    names = index.get("id2label")
    names = names if isinstance(names, dict) else {}
    return tuple(str(names.get(str(number), number)) for number in range(count))


def _check_timesteps(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a number of timesteps that no model has, before a table of them is made."""
    count = config.get("num_train_timesteps", 1000)
    if not isinstance(count, int) or not 1 <= count <= MAX_TIMESTEPS:
        raise UserError(f"{folder}/scheduler is damaged (num_train_timesteps is {str(count)[:50]}): restore it")


def _interpret_scheduler(folder: Path, config: Mapping[str, Any]) -> tuple[Schedule, Parameterization, float]:
    """The schedule, what the output means, and the timestep's offset, from a scheduler's config."""
    name = config.get("_class_name")
    if name in FLOW:
        return _flow(folder, config), PARAMETERIZATIONS["velocity"], 0.0
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


def _flow(folder: Path, config: Mapping[str, Any]) -> RectifiedFlow:
    """The rectified flow of a stock scheduler, whose times are shifted towards noise."""
    if config.get("use_dynamic_shifting", False):
        raise UserError(
            f"{folder}/scheduler shifts its times by the size of each image (use_dynamic_shifting), which only its "
            "pipeline knows: set it to false, and shift to the number that is used at your size"
        )
    shift = config.get("shift", 1.0)
    if not isinstance(shift, int | float) or not 0 < shift < 1000:
        raise UserError(f"{folder}/scheduler is damaged (shift is {str(shift)[:50]}): restore it")
    return RectifiedFlow(float(shift))


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
        f"{type(schedule).__name__} schedule of {denoiser.timesteps} timesteps, output "
        f"{denoiser.parameterization.name}, timestep = {denoiser.timesteps} "
        f"{'sigma' if isinstance(schedule, RectifiedFlow) else 't'} - {denoiser.offset:g}",
        *((f"distilled for {', '.join(map(str, model.steps))} steps",) if model.steps else ()),
        *((f"its schedule ends at a signal-to-noise ratio of {last / (1 - last):.1e}, not 0",) if last > 0 else ()),
    )
