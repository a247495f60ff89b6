"""Checks before a run starts: teacher, data, chain and folder must fit, and the precision is resolved."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist._utils.names import Precision
from progdist._utils.words import counted
from progdist.compute.cuda_graphs import check_available
from progdist.compute.precision import bf16_speedup, emulation_warning, resolve
from progdist.data.images import Images
from progdist.data.sources import cropped, open_source
from progdist.diffusion.loss import check_weighting
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.distillation import Plan
from progdist.methods.guidance import Input
from progdist.models.model import Model
from progdist.models.pipeline_autoencoder import PipelineAutoencoder
from progdist.models.prompts import Prompts
from progdist.models.quantized_base import check_quantizable
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import Data
from progdist.runs.context import RunContext
from progdist.training.loop import check_processes
from progdist.training.lora import require_peft
from progdist.training.state import bitsandbytes

STATED_COUNT = 2**20  # assumed count of images that are not on this machine


def check_options(recipe: Recipe, plan: Plan, teacher: Model | None) -> None:
    """Refuse options that do not suit the teacher (None if one is trained), have no effect, or lack their library."""
    if any(config.optimizer == "adamw8bit" for config in recipe.train_configs().values()):
        bitsandbytes()
    if (scale := recipe.evaluate.guidance) is not None:
        learned = plan.learned(teacher) if teacher else None
        if not isinstance(learned, Input):
            raise UserError(
                f"evaluate.guidance {scale:g} has no effect, because the students take no guidance scale: distil a "
                "range, e.g. --guidance 1:8"
            )
        if scale not in learned:
            raise UserError(f"evaluate.guidance is {scale:g}, expected {learned}, which the students learn")
    if teacher is None:
        check_weighting(recipe.distill.weighting, recipe.noise.build(), PARAMETERIZATIONS[recipe.parameterization])
        return
    plan.check(teacher)
    _check_steps(plan, teacher)
    if teacher.autoencoder and recipe.evaluate.clip:
        raise UserError("evaluate.clip applies only to images, but a latent model samples latents: set it to false")
    if teacher.autoencoder and recipe.data.flip:
        raise UserError("data.flip applies only to images, but a latent model trains on latents: set it to false")
    if recipe.lora is not None:
        _check_lora(plan, teacher)


def _check_steps(plan: Plan, teacher: Model) -> None:
    """Refuse a chain that stock samplers would not visit."""
    for count in plan.chain:
        table = teacher.denoiser.num_train_timesteps
        if table > 1 and table % count:
            raise UserError(
                f"the chain's {counted(count, 'step')} do not divide the teacher's {table} timesteps, "
                "so stock samplers would visit other times: choose divisors"
            )


def _check_lora(plan: Plan, teacher: Model) -> None:
    """Refuse a LoRA file that the teacher's pipeline cannot load or use."""
    conditioning = teacher.conditioning
    if not (isinstance(conditioning, Prompts) and conditioning.takes_lora):
        raise UserError(
            "lora requires a pipeline with load_lora_weights, got "
            f"{conditioning.pipeline or 'no text-to-image model'}: set distill.lora_rank for low-rank students"
        )
    if isinstance(plan.guidance, Input) and not teacher.takes_guidance:
        raise UserError(
            "lora requires a single guidance scale, because the teacher's own pipeline has no guidance input"
        )
    require_peft()
    if plan.base_bits is not None:
        check_quantizable(teacher.denoiser.network)


def check_encodes(teacher: Model) -> None:
    """Refuse data for a latent teacher that cannot encode them."""
    autoencoder = teacher.autoencoder
    if isinstance(autoencoder, PipelineAutoencoder) and not autoencoder.encodes:
        raise UserError(
            f"a {teacher.conditioning.pipeline} cannot encode images here: replace --data by --prompts FILE, to train "
            "on its own samples"
        )


def check_folder(context: RunContext) -> None:
    """Refuse a folder in which a run can neither start nor resume, or would resume a different half-trained model."""
    recipe, folder, names = context.recipe, context.folder, context.model_names
    if context.fresh:
        context.distributed.on_main_process(folder.check_movable)
        return
    finished = {name for name in {*names, "teacher", "converted"} if folder.model(name).exists()}

    def difference(path: Path) -> str:
        old = read_recipe(str(path))
        if not recipe.continues(old, finished):
            return recipe.difference(old)
        for name in names:
            checkpoint = folder.checkpoints(name).latest_path()
            if name not in finished and checkpoint and (changed := recipe.changed_under_way(old, name)):
                raise UserError(
                    f"{name} is half trained with another {changed[0]}: set that of {path}, remove "
                    f"{checkpoint.parent} to train it again, or choose another --out"
                )
        return ""

    context.distributed.on_main_process(lambda: folder.check_free(write_recipe(recipe), difference))


def check_data_kept(context: RunContext) -> None:
    """Warn if a run resumes with other images than it started with; refuse other labels, because it samples by them."""
    images, folder, distributed = context.images, context.folder, context.distributed
    if context.fresh or not hasattr(images.get, "fingerprint"):  # a dry run assumes the stated data
        return

    def before_and_now() -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        return (read_json(folder.data()), images.identity()) if folder.data().is_file() else None

    if (found := distributed.on_main_process(before_and_now)) is None:
        return
    before, now = found
    counts = f"images: {before.get('images')} then, {now['images']} now"
    if before.get("labels") != now["labels"]:
        raise UserError(
            f"the classes or captions of {images.name} differ from those {folder.root} was started with ({counts}): "
            "restore the data, or start over with --fresh or another --out"
        )
    if before.get("fingerprint") != now["fingerprint"]:
        context.callback.note(
            f"warning: the images of {images.name} have changed since {folder.root} was started ({counts}): finished "
            "models keep the old ones; --fresh starts over"
        )


def check_trainings(context: RunContext) -> None:
    """Refuse unfinished models that the run's processes cannot train or evaluate.

    Settings that would train badly give a warning.
    """
    recipe, distributed = context.recipe, context.distributed
    if recipe.evaluate.cuda_graphs:
        check_available()
    configs = recipe.train_configs(stage_0=context.has_stage_0)
    names = context.model_names if context.has_stage_0 or context.opened is None else context.model_names[1:]
    processes = distributed.processes.num_processes
    unfinished = [name for name in names if not context.finished(name)]
    for name in unfinished:
        try:
            check_processes(configs[name], processes, sharded=distributed.shards)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    warnings = {configs[name].ema_warning: name for name in reversed(unfinished)}  # each with its first model
    for warning, name in reversed(warnings.items()):
        if warning:
            context.callback.note(f"warning: {name}: {warning}")


def with_precision(recipe: Recipe, file: Path | None, device: torch.device) -> tuple[Recipe, list[str]]:
    """Resolve every `auto` of a recipe for a device; returns the recipe and messages for the user.

    `auto` is the precision with which the run was started, read from its resolved recipe in `file` if there is one, or
    else the faster one on the device.
    """
    before = read_recipe(str(file)) if file and file.is_file() else None
    asked, here, remarks = recipe.precisions(), resolve("auto", device), []
    kept = before.precisions() if before else {}
    chosen: dict[str, Precision]
    chosen = {name: here if kept.get(name, "auto") == "auto" else kept[name] for name in asked if asked[name] == "auto"}
    if other := [name for name, precision in chosen.items() if precision != here]:
        remarks.append(f"{' and '.join(other)}: {chosen[other[0]]}, as the run was started; here {here} is faster")
    elif chosen:
        speedup = bf16_speedup(device.type)
        beside = f"{1 / speedup:.3g} times slower" if 0 < speedup < 1 else f"{speedup:.2g} times as fast"
        remarks.append(f"precision: {here} (bf16 is {beside if speedup else 'not known to be faster'} here)")
    if "bf16" in (asked | chosen).values() and (warning := emulation_warning(device)):
        remarks.append(f"warning: {warning}")
    return recipe.with_precisions(chosen), remarks


def open_images(data: Data, seed: int) -> Images:
    """Open the data of a recipe, with random crops drawn from the seed, and check the stated classes."""
    images = open_source(data.source, data.transform(), data.columns())
    images = cropped(images, data.crops, seed) if data.crops > 1 else images
    if data.classes is not None and data.classes != len(images.classes):
        raise UserError(
            f"data.classes is {data.classes}, but {images.name} has {len(images.classes)}: change one of them"
        )
    return images


def stated_images(recipe: Recipe, note: Callable[[str], None]) -> Images:
    """The data of a recipe that trains its teacher, or a placeholder of the stated size if they are not here.

    A placeholder cannot be read: it has the shape and classes that an estimate needs.
    """
    data, network = recipe.data, recipe.network
    try:
        return open_images(data, recipe.seed)
    except UserError as error:
        conditional = network is not None and network.class_conditional
        if network is None or data.size is None or data.channels is None or (conditional and data.classes is None):
            raise
        absent = str(error)
    note(f"{absent}: assuming the size and classes of the recipe")

    def get(index: int) -> Tensor:
        raise UserError(absent)

    names, shape = tuple(map(str, range(data.classes or 0))), (data.channels, data.size, data.size)
    return Images(data.source, STATED_COUNT, get, None, names, shape=shape)
