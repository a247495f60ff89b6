"""Recipes that `progdist init` writes to a file: for a data set, and for a teacher with a data set.

The recipe for a data set follows the shipped recipe with the nearest image size. The network, its training, the chain
and the evaluation are those that were measured (docs/results.md), or, above LARGEST pixels, the paper's (appendix E).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from progdist._utils.errors import UserError
from progdist._utils.words import counted
from progdist.data.images import CaptionedImages, Images
from progdist.recipes.files import validated
from progdist.recipes.from_teacher import Request, content_for_teacher
from progdist.recipes.recipe import Recipe
from progdist.recipes.shipped import shipped
from progdist.recipes.text import read_yaml, write_sections
from progdist.teachers.open import Teacher

FOLLOWED = {
    8: ("digits", "digits"),
    32: ("fashion-mnist", "emoji"),
    64: ("imagenet64", "imagenet64"),
    128: ("lsun-bedroom128", "lsun-bedroom128"),
}
"""Largest image size in pixels for a shipped recipe -> its name, for grey and for colour."""

LARGEST = 32  # pixels, unless --size is set: the recipes for larger images train for days on several GPUs
EMPTY = (None, {}, [], ())


@dataclass(frozen=True)
class Proposal:
    """A recipe for a file, with reasons."""

    content: Mapping[str, Any]  # its keys and values
    reasons: Mapping[str, str]  # reasons by section or dotted name of a key

    def recipe(self) -> Recipe:
        """The checked recipe; a UserError if its values do not fit one another."""
        return validated(read_yaml(self.text()), (), f"recipe {self.content['name']}")

    def text(self) -> str:
        """The recipe as a commented YAML file."""
        return write_sections(self.content, self.reasons)


def recipe_for_data(images: Images, name: str, size: int | None = None) -> Proposal:
    """The recipe that trains a teacher on images, and distils it.

    Args:
        images: images opened without a size.
        name: name of the run.
        size: height and width of the network's images in pixels; None for those of the data, at most LARGEST.

    Raises:
        UserError: images with captions, which no network of a recipe takes; or a size above all shipped recipes.
    """
    if isinstance(images, CaptionedImages):
        raise UserError(
            f"{images.name} has captions, which apply only to text-to-image teachers: use `progdist init TEACHER "
            "--data ...`, or the images alone, folder:PATH"
        )
    own = _shorter_side(images)
    wanted, colour = min(own, LARGEST) if size is None else size, images.shape[0] != 1
    followed = next((names[colour] for most, names in FOLLOWED.items() if wanted <= most), None)
    if followed is None:
        raise UserError(f"--size is {wanted}, expected at most {max(FOLLOWED)}, the largest size of a shipped recipe")
    content = read_yaml(shipped()[followed])
    divisor = 2 ** (len(content["network"]["multipliers"]) - 1)
    side = wanted if size is not None else wanted - wanted % divisor
    if side % divisor or not side:
        raise UserError(
            f"images of {wanted} pixels cannot be halved as often as in the network of {followed}: choose a --size "
            f"divisible by {divisor}"
        )
    conditional = images.labels is not None and len(images.classes) > 1
    reasons = _reasons(images, followed, side, own, conditional=conditional)
    content |= {"name": name, "about": f"{images.name} at {side}x{side}, after the recipe {followed}"}
    network = content["network"]
    network.pop("class_conditional", None)
    if "attention" in network:  # at the levels of the followed recipe
        network["attention"] = [side * each // content["data"]["size"] for each in network["attention"]]
    content["network"] = network | ({"class_conditional": True} if conditional else {})
    content["data"] = {"source": images.name, "size": side, "channels": 3 if colour else 1}
    content["data"] |= {"resample": "bilinear"} if own < side else {}
    content["data"] |= {"background": "white"} if images.surveyed.transparent else {}
    if images.name != followed:  # its features belong to its own images
        content["evaluate"]["features"] = ["pixels"]
    return Proposal(content, reasons)


def _shorter_side(images: Images) -> int:
    """The median of the images' shorter sides in pixels."""
    return median_low([min(pixels) for pixels in images.surveyed.sizes.elements()])


def _reasons(images: Images, followed: str, side: int, own: int, *, conditional: bool) -> dict[str, str]:
    """The reasons for each section of a recipe for data."""
    reasons = {
        "data": f"{_described(images)}; {_framed(images, side, own)}.",
        "network": f"As in the shipped recipe {followed}, whose images are nearest in size"
        + (f"; conditional on {len(images.classes)} classes." if conditional else "."),
        "teacher": f"As in {followed}. Raise updates if the teacher's own samples are poor.",
        "distill": f"As in {followed}: the steps of the teacher, then those of each student.",
        "evaluate": f"As in {followed}. features: spaces for distances to the data (docs/metrics.md).",
    }
    if transparent := images.surveyed.transparent:
        reasons["data.background"] = f"Behind the {counted(transparent, 'image')} with transparency: a name or a code."
    return reasons


def _described(images: Images) -> str:
    """The number of images, their colours and sizes."""
    found, sides = images.surveyed, [min(pixels) for pixels in images.surveyed.sizes]
    colours = {0: "coloured", found.looked: "grey"}.get(found.grey, "coloured and grey")
    shapes = f"{len(sides)} sizes, whose shorter sides have {min(sides)} to {max(sides)} pixels"
    if len(sides) == 1:
        shapes = "{}x{} pixels".format(*next(iter(found.sizes)))
    looked = "" if found.looked == len(images) else f" ({found.looked:,} were checked)"
    return f"{len(images):,} {colours} {'image' if len(images) == 1 else 'images'} of {shapes}{looked}"


def _framed(images: Images, side: int, own: int) -> str:
    """How images are framed."""
    if set(images.surveyed.sizes) == {(side, side)}:
        return "used unchanged"
    why = ", the largest size without --size" if own > side == LARGEST else ""
    return f"cropped to squares and resampled to {side}x{side}{why}"


def recipe_of_teacher(teacher: Teacher, request: Request) -> Proposal:
    """The recipe that distils a teacher on data, without defaults; errors as in `recipe_for_teacher`."""
    content = _without_empty(content_for_teacher(teacher, request))
    converts = validated(content_for_teacher(teacher, request), (), "the recipe").plan().converts(teacher.model)
    timesteps = teacher.model.denoiser.num_train_timesteps
    reasons = {
        "data": f"Framed to the teacher's shape: {'x'.join(map(str, teacher.model.image))}.",
        "teacher": "Used unchanged; progdist doctor checks it on the data."
        + (" Stage 0 first converts it to v-prediction (section conversion)." if converts else ""),
        "distill": f"Counts that divide the teacher's {timesteps:,} timesteps, so that stock samplers visit their "
        "times. The last two stages take twice the updates, as in the paper.",
        "evaluate": "features: spaces for distances to the data, pixels by default (docs/metrics.md).",
    }
    return Proposal(content, reasons)


def _without_empty(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """A map without empty values, at all levels."""
    kept = {key: _without_empty(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    return {key: value for key, value in kept.items() if value not in EMPTY}
