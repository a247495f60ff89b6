"""A model on disk: a diffusers pipeline folder, and progdist.json beside it.

    unet/ or transformer/  scheduler/  model_index.json     what stock diffusers loads and samples
    vae/ or vqvae/                                          for a latent model
    tokenizer/  text_encoder/  ...                          for a text-conditional model, copied from its teacher
    pytorch_lora_weights.safetensors                        for LoRA adapters: the weights to add to its teacher
    guidance/                       for a class-conditional model with a guidance input: its addition to unet/
    progdist.json                   schedule, parameterization, step counts, lineage, versions

The scheduler visits exactly our grid if the step count divides T, so that a stock sampler makes the images of
`progdist sample`; for a rectified flow or an EDM this holds at the student's step count (see `progdist.teachers.flow`
and `.edm`). Other outputs, e.g. (x, eps), have no stock scheduler, and some networks no stock pipeline: their folder
holds only the parts and progdist.json. Stock diffusers loads the network of a class-conditional model without its
guidance input, which is the model at its default scale (see `progdist.models.guidance_input`).

A student that is LoRA weights for its teacher's stock pipeline keeps that pipeline's table of noise levels and output:
eps stays eps, and the last noise level stays above zero SNR. The conversion from eps to v depends on z and t,
v = (eps - sigma z) / alpha, and is not a low-rank correction of the weights. All stages train one set of adapters, from
the stage before, so that the last student is the base and one file. Its layers have peft's names, which stock pipelines
load completely; converted to the names of other libraries, some layers would be skipped silently.
"""

import errno
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
from diffusers import LDMPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.files import FORMAT_VERSION, atomic_write, checksum, read_json, write_json
from progdist._utils.words import counted
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import SCHEDULES
from progdist.methods import METHODS
from progdist.models.guidance_input import class_guidance, save_class_guidance
from progdist.models.model import LatentDenoiser, Model
from progdist.models.networks import kind_of
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.models.pipeline_record import write_pipeline
from progdist.models.prompts import Prompts
from progdist.students.card import card
from progdist.students.own_network import described, write_weights
from progdist.teachers import SCHEDULERS
from progdist.teachers.own_network import WEIGHTS
from progdist.teachers.schedulers import SchedulerKind

if TYPE_CHECKING:
    from progdist.evaluation.record import EvaluationRecord


def save(model: Model, folder: Path) -> None:
    """Write a model folder atomically.

    Raises:
        UserError: a subclass of Denoiser, a custom schedule or output around a diffusers network, or the folder
            exists.
        OSError: it cannot be written.
    """
    network = model.denoiser.network
    if type(model.denoiser) not in (Denoiser, LatentDenoiser):
        name = type(model.denoiser).__name__
        raise UserError(
            f"expected a Denoiser, got its subclass {name}, whose code is not saved: save "
            f"progdist.Denoiser(**denoiser.parts()), and build the {name} from what load returns"
        )
    own = kind_of(network) is None and not model.conditioning.takes_prompts
    schedule, output = model.denoiser.schedule, model.denoiser.parameterization
    recorded = (SCHEDULES.get(schedule.name), type(PARAMETERIZATIONS.get(output.name)))
    if not own and (type(schedule), type(output)) != recorded:
        raise UserError(
            f"a diffusers folder requires progdist's own schedules and outputs, got {type(schedule).__name__} with "
            f"{type(output).__name__}: save the network by its save_pretrained, and rebuild the Denoiser around it"
        )
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if own:
            _write_own(model, partial)
        else:
            _write(model, cast(ModelMixin, network), partial)
        partial.replace(folder)
    except safetensors.SafetensorError as error:  # e.g. a full disk
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, " ".join(str(error).split()), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_own(model: Model, target: Path) -> None:
    write_weights(model.denoiser, target)
    sums = {WEIGHTS: checksum(target / WEIGHTS)}
    write_json(target / "progdist.json", {**_description(model), **described(model.denoiser), "sha256": sums})


def _write(model: Model, network: ModelMixin, target: Path) -> None:
    scheduler, kind, prompts = stock_scheduler(model), kind_of(network), model.conditioning
    description = _description(model)
    if class_guidance(network):
        network = save_class_guidance(network, target)
    if isinstance(prompts, Prompts) and scheduler is not None:
        _write_pipeline(prompts, network, scheduler, target)
        if isinstance(prompts, PipelinePrompts):
            description["pipeline"] = write_pipeline(prompts.watched, target)
        if model.lora:
            layers: dict[str, Any] = {f"{prompts.part}_lora_layers": dict(model.lora.weights)}
            cast(Any, prompts.stock).save_lora_weights(target, **layers)
    elif kind is None or kind.prompt is not None:
        name = type(network).__name__
        raise UserError(f"a {name} is saved with the pipeline it was loaded with: pass its Model")
    elif pipeline := _pipeline(model, network, scheduler):
        pipeline.save_pretrained(target)
        if isinstance(pipeline, DiTPipeline):
            _write_class_names(model, target / "model_index.json")
    else:
        network.save_pretrained(target / kind.part)
        if scheduler:
            cast(Any, scheduler).save_pretrained(target / "scheduler")
        if model.autoencoder:
            cast(Any, model.autoencoder.network).save_pretrained(target / model.autoencoder.part)
    sums = {str(path.relative_to(target)): checksum(path) for path in sorted(target.rglob("*.safetensors"))}
    write_json(target / "progdist.json", {**description, "sha256": sums})
    write_card(model, target, ())


def _write_pipeline(prompts: Prompts, network: ModelMixin, scheduler: SchedulerMixin, target: Path) -> None:
    """Write the stock pipeline's folder of a text-to-image student.

    Writes its network, scheduler and index; all other parts in the index are copied from its teacher, byte for byte.
    """
    index: dict[str, Any] = dict(prompts.index)
    written: dict[str, Any] = {prompts.part: network, "scheduler": scheduler}
    for file in prompts.copied():
        copy = target / file.relative_to(prompts.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    index |= {part: ["diffusers", type(each).__name__] for part, each in written.items()}
    write_json(target / "model_index.json", index)
    for part, each in written.items():
        each.save_pretrained(target / part)


def _write_class_names(model: Model, file: Path) -> None:
    """Add the names of the classes to a pipeline's index, where DiTPipeline looks them up."""
    names = {str(label): name for label, name in enumerate(model.classes) if name != str(label)}
    if names:
        write_json(file, {**read_json(file), "id2label": names})


def _pipeline(model: Model, network: nn.Module, scheduler: SchedulerMixin | None) -> DiffusionPipeline | None:
    """The stock pipeline of a class-conditional or unconditional model; None if there is none.

    None of these pipelines shifts latents (see `progdist.models.autoencoder`).
    """
    if model.autoencoder and model.autoencoder.shifts:
        return None
    autoencoder = cast(Any, model.autoencoder.network if model.autoencoder else None)
    if isinstance(network, UNet2DModel) and autoencoder and isinstance(scheduler, DDIMScheduler | EDMEulerScheduler):
        return LDMPipeline(autoencoder, network, cast(Any, scheduler))
    if not isinstance(scheduler, DDIMScheduler):
        return None
    if isinstance(network, UNet2DModel):
        return DDIMPipeline(network, scheduler)
    return DiTPipeline(cast(Any, network), autoencoder, cast(Any, scheduler)) if autoencoder else None


def stock_scheduler(model: Model) -> SchedulerMixin | None:
    """The scheduler of a model's folder, for its own (least) step count; None if there is none.

    With a table it serves all divisors of T, otherwise one step count (see `progdist.teachers.flow` and `.edm`).
    """
    kind = _scheduler_kind(model)
    return kind.write(model.denoiser, min(model.steps, default=None), model.conditioning.spacing) if kind else None


def _scheduler_kind(model: Model) -> SchedulerKind | None:
    steps, spacing = min(model.steps, default=None), model.conditioning.spacing
    return next((kind for kind in SCHEDULERS if kind.write(model.denoiser, steps, spacing) is not None), None)


def off_grid(model: Model) -> str:
    """Step counts at which its stock scheduler visits other times than `progdist sample`, with the remedy, or ""."""
    kind = _scheduler_kind(model)
    if not model.steps or kind is None or model.conditioning.spacing != "stock":
        return ""
    missed, remedy = kind.missed(model.denoiser, model.steps)
    listed = " and ".join(counted(steps, "step") for steps in missed)
    return f"in {listed} its stock scheduler visits other times than progdist.sample: {remedy}" if missed else ""


def write_card(model: Model, target: Path, records: "Sequence[EvaluationRecord]") -> None:
    """Write the folder's README.md, with the model's evaluations."""
    stock = stock_class(model)
    scheduler = stock_scheduler(model) if model.lora else None
    text = card(model, stock, records, type(scheduler).__name__ if scheduler else "")
    atomic_write(target / "README.md", text.encode())


def stock_class(model: Model) -> str | None:
    """The stock pipeline of a latent model, or stock scheduler of others, that makes progdist's samples, or None."""
    if off_grid(model) and not model.conditioning.takes_prompts:
        return None
    if model.conditioning.pipeline:
        return model.conditioning.pipeline
    scheduler, network = stock_scheduler(model), model.denoiser.network
    if model.autoencoder:
        pipeline = _pipeline(model, network, scheduler)
        return type(pipeline).__name__ if pipeline else None
    kind = kind_of(network)
    return type(scheduler).__name__ if scheduler and kind and kind.part == "unet" else None


def _description(model: Model) -> dict[str, Any]:
    schedule = model.denoiser.schedule
    numbers = asdict(schedule) if is_dataclass(schedule) and not isinstance(schedule, type) else {}
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "schedule": {"kind": schedule.name, **numbers},
        "parameterization": model.denoiser.parameterization.name,
        "timesteps": model.denoiser.num_train_timesteps,
        "timestep_offset": model.denoiser.offset,
        "steps": list(model.steps),
        "lineage": list(model.lineage),
        "classes": list(model.classes),
        "data": model.data,
        "training": dict(model.training),
        "versions": {name: version(name) for name in ("progdist", "torch", "diffusers")},
    }
    if model.lineage:
        description["method"] = model.method if model.method in METHODS else ""  # not that of a custom method
    description |= model.conditioning.to_json(model.denoiser.network)
    if model.fused:
        description["fused"] = list(model.fused)
    if model.base:
        description["base"] = {"name": model.base.name, "license": dict(model.base.licence)}
    if model.lora:
        description["lora"] = {"base": model.lora.base, "rank": model.lora.rank}
        if model.lora.base_bits is not None:
            description["lora"]["base_bits"] = model.lora.base_bits
    return description
