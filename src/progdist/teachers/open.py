"""Open a teacher: one of our model folders, a stock diffusers pipeline folder, or either on the Hugging Face hub.

    model_index.json            the parts
    unet/ or transformer/       one of NETWORKS: size, channels, classes; safetensors, no pickle
    scheduler/                  one of `progdist.teachers.SCHEDULERS`: the noise, and what the output means
    vae/ or vqvae/              in a latent model: it encodes the data first
    text_encoder/ tokenizer/    in a text-to-image model: they encode the captions

What the folder says is also tried on data (see `progdist.teachers.check`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.files import local_path, read_json
from progdist._utils.words import any_of, counted
from progdist.data.images import Images
from progdist.diffusion.denoiser import MAX_TIMESTEPS, Denoiser, DenoiserProtocol
from progdist.diffusion.schedule import Discrete, Karras, RectifiedFlow, Schedule, VarianceExploding
from progdist.models.autoencoder import Autoencoder
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.model import Model
from progdist.models.networks import (
    NETWORKS,
    check_inputs,
    class_count,
    kind_of,
    network_interface,
    receives_levels,
    without_variance,
)
from progdist.models.pipeline_autoencoder import PipelineAutoencoder
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.models.pipelines import PIPELINES
from progdist.models.prompts import Prompts, read_prompts
from progdist.models.safe_loading import load_component, network_class, read_autoencoder
from progdist.models.trial import try_shapes
from progdist.teachers import SCHEDULERS
from progdist.teachers.base import CARD, base_of, prepared_from
from progdist.teachers.own import load
from progdist.teachers.pipeline import STEPS, study, takes_prompts
from progdist.teachers.schedulers import Formulation, read_formulation

INDEXES = ("model_index.json", "progdist.json", "call.safetensors", CARD)
RECORD = "prepared.json"  # in the folder of a prepared teacher (see `progdist.teachers.prepared`)
KINDS = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Files fetched for a model on the hub, and for each part that its index names: no pickles."""


@dataclass(frozen=True)
class Teacher:
    """A model to distil, and how its own folder samples it."""

    model: Model  # the denoiser and its conditioning
    summary: tuple[str, ...] = ()  # what was inferred, as lines
    limited: Callable[[DenoiserProtocol], DenoiserProtocol] = lambda denoiser: denoiser  # applies its sampler's limits
    limits: str = ""  # these limits in words; "" for none

    def for_data(self, images: Images) -> "Teacher":
        """The same, with students trained on some data: they record its images per class."""
        conditioning = self.model.conditioning.of_data(images)
        return replace(self, model=replace(self.model, conditioning=conditioning))


def open_teacher(source: str, offset: float | None = None, call: Mapping[str, Any] | None = None) -> Teacher:
    """Open a teacher from its folder, or from the hub as `hub:owner/name[@revision]`.

    `offset` replaces the timestep's offset, for networks that were trained with another convention. An unknown pipeline
    is watched (see `progdist.teachers.pipeline`), and so is one with further arguments `call`, e.g. its height, width
    or number of frames.

    Raises:
        UserError: it is missing, damaged, or of a kind that cannot be distilled here.
    """
    folder = resolve_folder(source)
    if (folder / "progdist.json").is_file():
        if call:
            raise UserError("--call applies only to a stock pipeline, and this is a progdist model: remove it")
        model = load(folder)
        model = model if offset is None else replace(model, denoiser=model.denoiser.with_parts(offset=offset))
        return Teacher(model, (f"{folder}: a progdist model", *_describe(model)))
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} has no model_index.json: give a folder made by a diffusers pipeline's save_pretrained"
        )
    if call or is_watched(folder):
        if offset is not None:
            raise UserError(f"an offset has no effect on {folder}, whose timesteps were observed: remove it")
        return _of_base(source, folder, _prepared(folder, _watched(folder, call or {})))
    return _of_base(source, folder, _prepared(folder, _open_pipeline(folder, offset)))


def _of_base(source: str, folder: Path, teacher: Teacher) -> Teacher:
    """The teacher with its name and licence, for the cards of its students."""
    base = base_of(source, folder, prepared_from(folder / RECORD))
    return replace(teacher, model=replace(teacher.model, base=base))


def _prepared(folder: Path, teacher: Teacher) -> Teacher:
    """The teacher with the names of LoRA files fused into it, if its folder records any."""
    if not (folder / RECORD).is_file():
        return teacher
    try:
        fused = tuple(f"{name}:{float(weight):g}" for name, weight in read_json(folder / RECORD)["loras"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{folder / RECORD} is damaged ({error!r}): remove {folder}") from error
    if not fused:
        return teacher
    lines = (*teacher.summary, f"fused into it: {', '.join(fused)}")
    return replace(teacher, model=replace(teacher.model, fused=fused), summary=lines)


def is_watched(folder: Path) -> bool:
    """Whether a folder's pipeline takes prompts and is not described in `progdist.models.pipelines`."""
    name = str(read_json(folder / "model_index.json").get("_class_name"))
    return name not in PIPELINES and takes_prompts(name)


def _watched(folder: Path, call: Mapping[str, Any]) -> Teacher:
    """Open a teacher by watching its pipeline."""
    found = study(folder, call)
    pipeline, denoiser = found.pipeline, found.denoiser
    conditioning = PipelinePrompts(folder, pipeline.folder.index, watched=pipeline)
    model = Model(denoiser, conditioning=conditioning, autoencoder=PipelineAutoencoder(pipeline))
    worst = max(found.verified, key=lambda name: found.verified[name])
    verified = f"verified: {', '.join(found.verified)}, within {found.verified[worst]:.1g} of the pipeline's own"
    title = f"{folder}: {pipeline.folder.name}, watched for {STEPS} steps"
    lines = (title, *_describe(model), *pipeline.call.describe(), verified, *found.notes)
    return Teacher(model, lines)


def _open_pipeline(folder: Path, offset: float | None) -> Teacher:
    index = read_json(folder / "model_index.json")
    part, class_name = _network(folder, index)
    network = without_variance(load_component(folder, part, network_class(folder / part, class_name)))
    check_inputs(network, folder / part)
    config, autoencoder = _scheduler_config(folder), read_autoencoder(folder)
    prompts = read_prompts(folder, network)
    formulation = _formulation(folder, config)
    _check_time(folder, network, formulation.schedule, config["_class_name"])
    if prompts:
        _check_pipeline(folder, prompts, network, autoencoder)
        formulation = replace(
            formulation, limited=lambda denoiser: denoiser, limits=""
        )  # as in stock pipelines of prompts
    denoiser = Denoiser(
        network,
        formulation.schedule,
        formulation.parameterization,
        num_train_timesteps=formulation.num_train_timesteps or config.get("num_train_timesteps", 1000),
        offset=formulation.offset if offset is None else offset,
        **network_interface(network),
    )
    conditioning = prompts or _classes(index, cast(Any, network).config, class_count(network))
    model = Model(denoiser, conditioning=conditioning, autoencoder=autoencoder)
    try_shapes(model, folder)
    title = f"{folder}: {type(network).__name__} with {config['_class_name']}"
    summary = (title, *_describe(model), *formulation.notes)
    return Teacher(model, summary, formulation.limited, formulation.limits)


def _formulation(folder: Path, config: Mapping[str, Any]) -> Formulation:
    """Read a stock scheduler's config. Raise a UserError if it is damaged, or not in `progdist.teachers.SCHEDULERS`."""
    count = config.get("num_train_timesteps", 1000)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_TIMESTEPS:
        raise UserError(f"{folder}/scheduler is damaged (num_train_timesteps is {str(count)[:50]}): restore it")
    return read_formulation(SCHEDULERS, folder, config)


def _check_time(folder: Path, network: nn.Module, schedule: Schedule, scheduler: str) -> None:
    """Refuse a score-based network with a scheduler of timesteps, and vice versa."""
    levels = receives_levels(network)
    if levels != isinstance(schedule, VarianceExploding):
        takes = "fourier, for noise levels" if levels else "not fourier"
        raise UserError(
            f"{folder}/unet has a time_embedding_type that is {takes}, but {scheduler} expects the other: restore the "
            "folder"
        )


def _check_pipeline(folder: Path, prompts: Prompts, network: nn.Module, autoencoder: Autoencoder | None) -> None:
    """Refuse a text-to-image network that takes more than prompts and latents, or already a guidance scale."""
    config: Any = network.config
    if config.get("time_cond_proj_dim") is not None:
        raise UserError(f"{folder} takes a guidance scale already: give the teacher that it was made from")
    if getattr(network, "use_additional_conditions", False):
        raise UserError(
            f"{folder}: its network takes the size of its images, which a {prompts.pipeline} does not pass: use another"
        )
    kind = kind_of(network)
    assert kind is not None and kind.prompt is not None  # it has prompts
    given, taken = {*prompts.kind.prompts, *(["time_ids"] if prompts.takes_sizes else [])}, kind.prompt(config).keys()
    if given != taken:
        raise UserError(
            f"{folder}: its network takes {', '.join(sorted(taken))}, but a {prompts.pipeline} passes "
            f"{', '.join(sorted(given))}: restore the folder"
        )
    latents = prompts.shape(network)
    channels = latents[0] if latents else config["in_channels"]
    if autoencoder is None or channels != autoencoder.channels:
        raise UserError(
            f"{folder}: its network takes {counted(channels, 'channel')}, which are not the latents of its vae/: "
            "expected a pipeline that makes images only from prompts"
        )
    if ignored := [name for name in autoencoder.shifts if name not in prompts.kind.shifts]:
        raise UserError(
            f"{folder}/vae has {' and '.join(ignored)}, which a {prompts.pipeline} ignores: if its network was "
            "trained without, set them to null in vae/config.json"
        )


def resolve_folder(source: str) -> Path:
    """The folder itself, or that of `hub:owner/name[@revision]`, fetching only its parts."""
    if not source.startswith("hub:"):
        folder = local_path(source)
        if folder.is_dir():
            return folder
        hint = f", or hub:{source} if you mean a model on the Hugging Face hub" if source.count("/") == 1 else ""
        raise UserError(f"{source} is not a folder: give a diffusers pipeline folder{hint}")
    from huggingface_hub import snapshot_download

    name, _, revision = source.removeprefix("hub:").partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(INDEXES)))
        index = folder / "model_index.json"
        parts = [each for each in (read_json(index) if index.is_file() else {}) if not each.startswith("_")]
        patterns = [*INDEXES, *(f"{part}/{kind}" for part in (*parts, "guidance") for kind in KINDS)]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the library raises many kinds: all mean that it cannot be fetched
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{source} cannot be fetched ({reason}): expected hub:owner/name or hub:owner/name@rev"
        ) from error


def _scheduler_config(folder: Path) -> dict[str, Any]:
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise UserError(f"{folder} lacks scheduler/{file.name}: restore the file, or save the pipeline again")
    return read_json(file)


def _network(folder: Path, index: Mapping[str, Any]) -> tuple[str, str]:
    """The network's part in the folder, and its class."""
    parts = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    for name in ("unet", "transformer"):
        if parts.get(name) in (*NETWORKS, "Transformer2DModel"):
            return name, parts[name]
    listed = ", ".join(f"{name}: {class_name}" for name, class_name in sorted(parts.items())) or "nothing"
    raise UserError(
        f"{folder} has {listed[:400]}, expected a pipeline with one of these networks: {', '.join(NETWORKS)}"
    )


def _classes(index: Mapping[str, Any], config: Mapping[str, Any], count: int) -> Conditioning:
    """The classes from `id2label` of the pipeline's index or its network's config, or by number; or none."""
    listed = (each.get("id2label") for each in (index, config))
    names = next((each for each in listed if isinstance(each, dict)), {})
    return Classes(tuple(str(names.get(str(number), number)) for number in range(count))) if count else Conditioning()


def _describe(model: Model) -> tuple[str, ...]:
    denoiser, latent, schedule = model.denoiser, model.autoencoder, model.denoiser.schedule
    image, latents = ("x".join(map(str, shape)) for shape in (model.image, model.shape))
    count = sum(parameter.numel() for parameter in denoiser.network.parameters())
    last = schedule.alphas_cumprod[-1] if isinstance(schedule, Discrete) else 0.0
    lines = [f"{count:,} parameters, images of {image}, {model.conditioning.describe()}"]
    if latent:
        maker = f"{type(latent.network).__name__} makes" if latent.part else "its pipeline decodes"
        lines.append(f"a latent model: {maker} latents of {latents}")
    lines.append(_noise(denoiser))
    if model.steps:
        lines.append(f"distilled for {any_of(model.steps, 'step')}")
    if last > 0:
        lines.append(f"its schedule ends at a signal-to-noise ratio of {last / (1 - last):.1e}, not 0")
    return tuple(lines)


def _noise(denoiser: Denoiser) -> str:
    """Schedule, output and timestep in one line."""
    schedule, count, output = denoiser.schedule, denoiser.num_train_timesteps, denoiser.parameterization.name
    if isinstance(schedule, Karras):
        levels = f"from {schedule.sigma_min:g} to {schedule.sigma_max:g} on data of deviation {schedule.sigma_data:g}"
        timestep = "log(sigma) / 4" if schedule.c_noise == "log" else "2 atan(sigma) / pi"
        return f"Karras schedule {levels}, output {output}, timestep = {timestep}"
    if isinstance(schedule, VarianceExploding):
        return f"noise from {schedule.sigma_min:g} to {schedule.sigma_max:g} on unscaled data, output {output}"
    flow = isinstance(schedule, RectifiedFlow)
    shift = f"shifted by {schedule.shift:g}, " if isinstance(schedule, RectifiedFlow) and schedule.shift != 1 else ""
    return (
        f"{type(schedule).__name__} schedule of {count} timesteps, {shift}output {output}, timestep = {count} "
        f"{'sigma' if flow else 't'} - {denoiser.offset:g}"
    )
