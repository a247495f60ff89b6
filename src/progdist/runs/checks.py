"""What is checked before a run begins: that teacher, data, chain and folder fit, and which precision it computes in."""

from pathlib import Path

import torch

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist.compute.cuda_graphs import check_available
from progdist.compute.precision import bf16_speedup, emulation_warning, resolve
from progdist.data.images import Images
from progdist.data.sources import cropped, open_source
from progdist.distillation import Plan
from progdist.methods.guidance import Input
from progdist.models.model import Model
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import Data
from progdist.runs.context import RunContext
from progdist.students.folder import LORA_LOADERS
from progdist.training.loop import check_processes
from progdist.training.lora import require_peft
from progdist.training.state import bitsandbytes


def check_options(recipe: Recipe, teacher: Model | None) -> None:
    """Refuse options that do not suit the teacher, None where one is trained, have no effect, or miss their library."""
    plan = recipe.plan()
    if any(config.optimizer == "adamw8bit" for config in recipe.train_configs().values()):
        bitsandbytes()
    if (scale := recipe.evaluate.guidance) is not None:
        learned = plan.learned(teacher) if teacher else None
        if not isinstance(learned, Input):
            raise UserError(
                f"evaluate.guidance {scale:g} has no effect: the students take no guidance scale; distil a range, e.g. "
                "--guidance 1:8"
            )
        if scale not in learned:
            raise UserError(f"evaluate.guidance is {scale:g}, and the students learn {learned}")
    if teacher is None:
        return
    plan.check(teacher)
    _check_steps(plan, teacher)
    if teacher.autoencoder and recipe.evaluate.clip:
        raise UserError("evaluate.clip applies only to images, and a latent model samples latents: set it to false")
    if teacher.autoencoder and recipe.data.flip:
        raise UserError("data.flip applies only to images, and a latent model sees latents: set it to false")
    if recipe.lora is not None:
        _check_lora(teacher)


def _check_steps(plan: Plan, teacher: Model) -> None:
    """Refuse a chain that does not begin where a distilled teacher ends, or that stock samplers would not visit."""
    if teacher.steps and plan.chain[0] not in teacher.steps:
        counts = ", ".join(map(str, teacher.steps))
        raise UserError(
            f"the teacher was distilled for {counts} steps and the chain starts at {plan.chain[0]}: set distill.start "
            "(or distill.chain) to start there"
        )
    for count in plan.chain:
        if (table := teacher.denoiser.num_train_timesteps) % count:
            raise UserError(
                f"the chain's {count} steps do not divide the teacher's {table} timesteps, "
                "so stock samplers would visit other times: choose counts that do"
            )


def _check_lora(teacher: Model) -> None:
    """Refuse a LoRA file that no pipeline would load."""
    pipeline = teacher.conditioning.pipeline
    if pipeline not in LORA_LOADERS:
        raise UserError(
            f"lora requires a {' or '.join(LORA_LOADERS)}, and the teacher is {pipeline or 'no text-to-image model'}: "
            "set distill.lora_rank for students of low rank"
        )
    require_peft()


def check_folder(context: RunContext) -> None:
    """Refuse a folder in which a run can neither begin nor go on, or would go on with another half-trained model."""
    recipe, folder, names = context.recipe, context.folder, context.model_names
    finished = {name for name in {*names, "teacher", "converted"} if folder.model(name).exists()}

    def continues(path: Path) -> bool:
        old = read_recipe(str(path))
        if not recipe.continues(old, finished):
            return False
        for name in names:
            checkpoint = folder.checkpoints(name).latest_path()
            if name not in finished and checkpoint and (changed := recipe.changed_under_way(old, name)):
                raise UserError(
                    f"{name} is half trained with another {changed[0]}: give that of {path}, remove "
                    f"{checkpoint.parent} to train it again, or choose another --out"
                )
        return True

    context.distributed.on_main_process(lambda: folder.check_free(write_recipe(recipe), continues))


def check_trainings(context: RunContext) -> None:
    """Refuse what its processes cannot train, of the models of a run that are not finished, or cannot evaluate."""
    recipe, folder, distributed = context.recipe, context.folder, context.distributed
    if recipe.evaluate.cuda_graphs:
        check_available()
    configs = recipe.train_configs(stage_0=context.has_stage_0)
    names = context.model_names if context.has_stage_0 or context.opened is None else context.model_names[1:]
    processes = distributed.accelerator.num_processes
    unfinished = distributed.on_main_process(lambda: [name for name in names if not folder.model(name).exists()])
    for name in unfinished:
        try:
            check_processes(configs[name], processes, sharded=distributed.shards)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def with_precision(recipe: Recipe, file: Path, device: torch.device) -> tuple[Recipe, list[str]]:
    """The recipe with every `auto` resolved for a device, and messages for the user.

    `auto` is the precision with which the run was begun, as the file of its resolved recipe says if it is there, or
    what pays on the device.
    """
    before = read_recipe(str(file)) if file.is_file() else None
    asked, here, remarks = recipe.precisions(), resolve("auto", device), []
    kept = before.precisions() if before else {}
    chosen: dict[str, Precision]
    chosen = {name: here if kept.get(name, "auto") == "auto" else kept[name] for name in asked if asked[name] == "auto"}
    if other := [name for name, precision in chosen.items() if precision != here]:
        remarks.append(f"{' and '.join(other)}: {chosen[other[0]]}, as the run was begun; here {here} is faster")
    elif chosen:
        speedup = bf16_speedup(device.type)
        beside = f"{1 / speedup:.3g} times slower" if 0 < speedup < 1 else f"{speedup:.2g} times as fast"
        remarks.append(f"precision: {here} (bf16 is {beside if speedup else 'not known to be faster'} here)")
    if "bf16" in (asked | chosen).values() and (warning := emulation_warning(device)):
        remarks.append(f"warning: {warning}")
    return recipe.with_precisions(chosen), remarks


def open_images(data: Data, seed: int) -> Images:
    """The data set of a recipe's section, whose random crops are of the seed; it has the classes that are stated."""
    images = open_source(data.source, data.transform(), data.columns())
    images = cropped(images, data.crops, seed) if data.crops > 1 else images
    if data.classes is not None and data.classes != len(images.classes):
        raise UserError(
            f"data.classes is {data.classes}, but {images.name} has {len(images.classes)}: change one of them"
        )
    return images
