"""What is checked before a run begins: that teacher, data and chain fit, and which precision it computes in."""

from collections.abc import Sequence
from pathlib import Path

import torch

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist.compute.cuda_graphs import check_available
from progdist.compute.precision import bf16_speedup, emulation_warning, resolve
from progdist.data.images import CaptionedImages, Images
from progdist.data.sources import cropped, load_images
from progdist.models.model import Model
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import Data
from progdist.runs.folder import RunFolder
from progdist.training.distributed import Distributed
from progdist.training.loop import check_processes


def check_data(recipe: Recipe, model: Model, images: Images) -> None:
    """Refuse data that do not suit a teacher."""
    shape, classes, captioned = model.image, len(images.classes), isinstance(images, CaptionedImages)
    if model.text and not captioned:
        raise UserError(
            f"the teacher makes images of captions, and {images.name} has none: give captions:FOLDER, or name their "
            "--caption-column"
        )
    if captioned and not model.text:
        raise UserError(f"{images.name} is of captions, and the teacher takes none: give folder:FOLDER")
    null_class(recipe, model, images)
    if shape != images.shape:
        raise UserError(
            f"the teacher makes images of {shape}, {images.name} holds {images.shape} (channels, height, "
            "width): set data.size and data.channels"
        )
    if model.classes and not classes:
        raise UserError(f"the teacher has {len(model.classes)} classes, but {images.name} has no labels")
    if model.classes and classes > len(model.classes):
        raise UserError(f"{images.name} has {classes} classes, the teacher knows {len(model.classes)}")


def null_class(recipe: Recipe, model: Model, images: Images) -> int | None:
    """The class that stands for no class where a model is guided; None without guidance, or of captions.

    Raises:
        UserError: the model has no classes, it is not one of them, or none is named and each of the model's classes is
            one of the data's.
    """
    if recipe.conversion.guidance is None or model.text:
        return None
    known, named = len(model.classes), recipe.conversion.null_class
    if not known:
        raise UserError("the teacher has no classes, so there is nothing to guide: leave guidance out")
    null = named if named is not None else known - 1
    if not 0 <= null < known:
        raise UserError(f"guidance needs a class that stands for none: {null} is not one of the model's")
    if named is None and known <= len(images.classes):
        raise UserError(
            f"guidance needs a class that stands for none, and all {known} classes of the teacher are those of "
            f"{images.name}: name it with --set conversion.null_class=N"
        )
    return null


def check_folder(recipe: Recipe, folder: RunFolder, distributed: Distributed) -> None:
    """Refuse a folder in which a recipe's run can neither begin nor go on.

    Raises:
        UserError: as in `RunFolder.check_free`, or a model that is half trained would go on as another one.
    """
    finished = {name for name in recipe.model_names() if folder.model(name).exists()}

    def continues(path: Path) -> bool:
        old = read_recipe(str(path))
        if not recipe.continues(old, finished):
            return False
        for name in recipe.model_names():
            checkpoint = folder.checkpoints(name).latest_path()
            if name not in finished and checkpoint and (changed := recipe.changed_under_way(old, name)):
                raise UserError(
                    f"{name} is half trained with another {changed[0]}: give that of {path}, remove "
                    f"{checkpoint.parent} to train it anew, or choose another --out"
                )
        return True

    distributed.on_main_process(lambda: folder.check_free(write_recipe(recipe), continues))


def check_trainings(recipe: Recipe, folder: RunFolder, names: Sequence[str], distributed: Distributed) -> None:
    """Refuse what its processes cannot train, of the named models of a run, as far as they are not finished.

    Raises:
        UserError: names the model, and is as in `check_processes`; or as in `check_available`, of the evaluation.
    """
    if recipe.evaluate.cuda_graphs:
        check_available()
    configs = dict(zip(recipe.model_names(), recipe.train_configs(), strict=True))
    processes = distributed.accelerator.num_processes
    unfinished = distributed.on_main_process(lambda: [name for name in names if not folder.model(name).exists()])
    for name in unfinished:
        try:
            check_processes(configs[name], processes, sharded=distributed.shards)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def with_precision(recipe: Recipe, file: Path, device: torch.device) -> tuple[Recipe, list[str]]:
    """The recipe with every `auto` resolved, and messages for the user.

    Args:
        recipe: in which `auto` is the precision with which the run in the folder was begun, or what pays here.
        file: of that run's resolved recipe, if there is one.
        device: on which the run computes.
    """
    before = read_recipe(str(file)) if file.is_file() else None
    asked: dict[str, Precision] = recipe.precisions()
    kept: dict[str, Precision] = before.precisions() if before else {}
    here = resolve("auto", device)
    chosen: dict[str, Precision]
    chosen = {name: here if kept.get(name, "auto") == "auto" else kept[name] for name in asked if asked[name] == "auto"}
    remarks = []
    if other := [name for name, precision in chosen.items() if precision != here]:
        remarks.append(f"{' and '.join(other)}: {chosen[other[0]]}, as the run was begun; here {here} is faster")
    elif chosen:
        remarks.append(f"precision: {here} ({_bf16_here(bf16_speedup(device.type))})")
    if "bf16" in (asked | chosen).values() and (warning := emulation_warning(device)):
        remarks.append(f"warning: {warning}")
    return recipe.with_precisions(chosen), remarks


def _bf16_here(speedup: float) -> str:
    """How fast bf16 is beside float32, in words."""
    if speedup == 0:
        return "bf16 is not known to be faster here"
    return (
        f"bf16 is {1 / speedup:.3g} times slower here" if speedup < 1 else f"bf16 is {speedup:.2g} times as fast here"
    )


def open_images(data: Data, seed: int) -> Images:
    """The data set of a recipe's section, whose random crops are of the seed.

    Raises:
        UserError: it cannot be read, or has another number of classes than the section states.
    """
    images = load_images(data.source, data.transform(), data.columns())
    images = cropped(images, data.crops, seed) if data.crops > 1 else images
    if data.classes is not None and data.classes != len(images.classes):
        raise UserError(
            f"data.classes is {data.classes}, but {images.name} has {len(images.classes)}: change one of them"
        )
    return images
