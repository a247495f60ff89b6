"""A model on disk: a diffusers pipeline folder, and progdist.json beside it.

    unet/ or transformer/  scheduler/  model_index.json     what stock diffusers loads and samples
    vae/ or vqvae/                                          of a latent model
    tokenizer/  text_encoder/  ...                          of a text-conditional one, copied from its teacher
    pytorch_lora_weights.safetensors                        what makes it of its teacher, if it is LoRA adapters
    guidance/                       of a class-conditional one that takes a guidance scale: what it adds to unet/
    progdist.json                   schedule, parameterization, step counts, lineage, versions

The scheduler in the folder visits exactly our grid wherever the step count divides T: trailing timesteps, betas from
the schedule itself. A stock sampler then makes the images that `progdist sample` makes. A rectified flow with velocity
output has FlowMatchEulerDiscreteScheduler, which visits our grid at the step count that the student was distilled for
(see `progdist.teachers.flow`). Other pairs, (x, eps) among them, have no stock scheduler, and some networks no stock
pipeline; their folder holds the parts and progdist.json alone. A class-conditional model that
takes a guidance scale is for stock diffusers the network in unet/ or transformer/, which is the model at its usual
scale (see `progdist.models.guidance_input`).
"""

import errno
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import safetensors
from diffusers import LDMPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.files import FORMAT_VERSION, atomic_write, check_format, checksum, read_json, write_json
from progdist.diffusion.denoiser import MAX_TIMESTEPS, Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import SCHEDULES, Schedule
from progdist.models.guidance_input import class_guidance, load_class_guidance, save_class_guidance
from progdist.models.model import Model
from progdist.models.prompts import network_interface, text_pipeline
from progdist.models.safe_loading import NETWORKS, load_component, nearest_models, network_class, read_autoencoder
from progdist.models.unet import image_shape, is_text_conditional
from progdist.students.card import card
from progdist.students.lora_file import read_lora
from progdist.students.pipeline_folder import guidance_of, sides_of, write_pipeline


def save(model: Model, folder: Path) -> None:
    """Write a model folder; it appears whole or not at all.

    Raises:
        UserError: the network is not one of diffusers', or the folder exists.
        OSError: it cannot be written.
    """
    network = model.denoiser.network
    if not isinstance(network, tuple(NETWORKS.values())):
        names = ", ".join(sorted({kind.__name__ for kind in NETWORKS.values()}))
        raise UserError(f"only {names} have a model folder, got {type(network).__name__}: save its state_dict")
    schedule, output = model.denoiser.schedule, model.denoiser.parameterization
    known = (SCHEDULES.get(schedule.name), type(PARAMETERIZATIONS.get(output.name)))
    if (type(schedule), type(output)) != known:
        raise UserError(
            f"a model folder records progdist's own schedules and outputs, not {type(schedule).__name__} "
            f"with {type(output).__name__}: save the network's state_dict"
        )
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(model, network, partial)
        partial.replace(folder)
    except safetensors.SafetensorError as error:  # how its writer reports a full disk
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, " ".join(str(error).split()), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: Model, network: ModelMixin, target: Path) -> None:
    scheduler = model.scheduler
    if class_guidance(network):
        network = save_class_guidance(network, target)
    if is_text_conditional(network):
        if model.text is None or scheduler is None:
            name = type(network).__name__
            raise UserError(f"a {name} is saved with the pipeline that it was loaded with: use its Model")
        write_pipeline(model.text, network, scheduler, target)
        if model.lora:
            model.lora.write(model.text.kind, target)
    elif isinstance(scheduler, DDIMScheduler) and (pipeline := _pipeline(model, network, scheduler)):
        pipeline.save_pretrained(target)
    else:
        network.save_pretrained(target / _part(network))
        if scheduler:
            scheduler.save_pretrained(target / "scheduler")
        if model.autoencoder:
            model.autoencoder.network.save_pretrained(target / model.autoencoder.part)
    sums = {str(path.relative_to(target)): checksum(path) for path in sorted(target.rglob("*.safetensors"))}
    write_json(target / "progdist.json", {**_description(model), "sha256": sums})
    write_card(model, target, ())


def _pipeline(model: Model, network: nn.Module, scheduler: DDIMScheduler) -> DiffusionPipeline | None:
    """The stock pipeline of the model; None where there is none."""
    autoencoder = cast(Any, model.autoencoder.network if model.autoencoder else None)
    if isinstance(network, UNet2DModel):
        return LDMPipeline(autoencoder, network, scheduler) if autoencoder else DDIMPipeline(network, scheduler)
    return DiTPipeline(cast(Any, network), autoencoder, cast(Any, scheduler)) if autoencoder else None


def _part(network: nn.Module) -> str:
    """Where a network lies within a folder."""
    return "unet" if isinstance(network, UNet2DModel | UNet2DConditionModel) else "transformer"


def write_card(model: Model, target: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the folder's README.md, with the model's evaluations."""
    text = card(_description(model), model.labels, _stock(model), model.image, model.shape, records)
    atomic_write(target / "README.md", text.encode())


def _stock(model: Model) -> str | None:
    """The stock pipeline of a latent model, or the stock scheduler of another; None where there is none."""
    if model.text:
        return model.text.kind
    scheduler, network = model.scheduler, model.denoiser.network
    pipeline = _pipeline(model, network, scheduler) if isinstance(scheduler, DDIMScheduler) else None
    latent = type(pipeline).__name__ if pipeline and model.autoencoder else None
    plain = type(scheduler).__name__ if scheduler and not model.autoencoder and _part(network) == "unet" else None
    return latent or plain


def load(folder: Path) -> Model:
    """Read a model folder, with the network in evaluation mode on the CPU.

    Raises:
        UserError: it is missing, no model folder, damaged, or of a later format.
    """
    if not (folder / "progdist.json").is_file():
        raise UserError(f"{folder} is no model folder (it has no progdist.json): give {nearest_models(folder)}")
    metadata = read_json(folder / "progdist.json")
    check_format(metadata, folder / "progdist.json")
    _verify_checksums(folder, metadata.get("sha256", {}))
    try:
        part = "transformer" if (folder / "transformer").is_dir() else "unet"
        network = load_component(folder, part, network_class(folder / part))
        if (scales := metadata.get("class_guidance")) is not None:
            network = load_class_guidance(network, scales, folder)
        denoiser = Denoiser(
            network,
            _schedule(metadata["schedule"]),
            PARAMETERIZATIONS[metadata["parameterization"]],
            timesteps=int(metadata["timesteps"]),
            offset=float(metadata["timestep_offset"]),
            **network_interface(network),
        )
        counts = {name: tuple(_step_count(count) for count in metadata[name]) for name in ("steps", "lineage")}
        classes = tuple(str(name) for name in metadata["classes"])
        text = text_pipeline(folder, network, sides_of(metadata.get("latent_sides")))
        if text:
            text = text.guided(guidance_of(metadata["guidance"]), metadata["negative"])
        return Model(
            denoiser,
            **counts,
            classes=classes,
            data=metadata["data"],
            training=metadata["training"],
            autoencoder=read_autoencoder(folder),
            text=text,
            lora=read_lora(folder, metadata.get("lora")),
            null_class=metadata.get("null_class"),
            target=str(metadata.get("target", "progressive")),
        )
    except UserError as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, IndexError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{folder} is damaged ({reason}): restore it, or make it again") from error


def _step_count(number: object) -> int:
    """A number of steps that a model can take.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(number, int) or not 1 <= number <= MAX_TIMESTEPS:
        raise ValueError(f"a step count is {str(number)[:50]}, expected 1 to {MAX_TIMESTEPS:,}")
    return number


def _verify_checksums(folder: Path, sums: object) -> None:
    """Refuse weights that are not those that were written; folders of early versions have no sums."""
    where = folder / "progdist.json"
    if not isinstance(sums, dict):
        raise UserError(f"{where}: sha256 is a {type(sums).__name__}, expected names and sums: restore it")
    held = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.safetensors"))}
    for name in sorted(held.keys() ^ sums.keys()) if sums else ():
        what = "is not one of the files that were written" if name in held else "is missing"
        raise UserError(f"{folder / str(name)} {what}: restore the folder (or remove sha256 from {where})")
    for name, path in held.items():
        if sums and checksum(path) != sums[name]:
            raise UserError(
                f"{path} is not what was written: restore it (or, if you changed it on purpose, remove sha256 from "
                f"{where})"
            )


def _schedule(metadata: Mapping[str, Any]) -> Schedule:
    """A schedule from its description."""
    numbers: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in metadata.items()
    }
    return SCHEDULES[numbers.pop("kind")](**numbers)


def _description(model: Model) -> dict[str, Any]:
    """What progdist.json says."""
    schedule: Any = model.denoiser.schedule
    network = model.denoiser.network
    return {
        "format_version": FORMAT_VERSION,
        "schedule": {"kind": schedule.name, **asdict(schedule)},
        "parameterization": model.denoiser.parameterization.name,
        "timesteps": model.denoiser.timesteps,
        "timestep_offset": model.denoiser.offset,
        "steps": list(model.steps),
        "lineage": list(model.lineage),
        **({"target": model.target} if model.lineage else {}),
        "classes": list(model.classes),
        **({} if model.null_class is None else {"null_class": model.null_class}),
        "data": model.data,
        "training": dict(model.training),
        **({"guidance": model.text.guidance, "negative": model.text.negative} if model.text else {}),
        **({"lora": {"base": model.lora.base, "rank": model.lora.rank}} if model.lora else {}),
        **({} if model.text or model.guidance is None else {"class_guidance": model.guidance}),
        **({"latent_sides": list(model.text.sides)} if model.text and image_shape(network) is None else {}),
        "versions": {name: version(name) for name in ("progdist", "torch", "diffusers")},
    }
