"""The page of a student beside its teacher: the measurements, and pairs of images, those that differ most first."""

from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from progdist._utils.files import atomic_write
from progdist.data.grid import grid_image
from progdist.evaluation.faithful import Faithfulness, as_rows
from progdist.runs.pages.report import template
from progdist.runs.pages.slides import LARGEST_SINGLE, embed

SHOWN = 48  # pairs


def write_pairs(out: Path, found: Faithfulness, seed: int) -> None:
    """Write the page, which opens offline."""
    pairs = []
    for number in found.worst_first()[:SHOWN]:
        student, teacher = (_embedded(images[number]) for images in found.images)
        condition = found.conditions[int(found.labels[number])] if found.conditions else ""
        shown = {"student": student[0], "teacher": teacher[0], "width": student[1], "height": student[2]}
        pairs.append(shown | {"condition": condition, "number": number, "apart": float(found.apart[number])})
    page = template("pairs.html").render(
        found=found,
        seed=seed,
        rows=as_rows(found),
        pairs=pairs,
        kind="prompt" if found.of_prompts else "class",
        versions=f"progdist {version('progdist')}, torch {version('torch')}, diffusers {version('diffusers')}",
    )
    atomic_write(out, page.encode())


def _embedded(image: Tensor) -> tuple[str, int, int]:
    """An image uint8 (C, H, W) as a data URI, its width and its height."""
    return embed(grid_image(image.unsqueeze(0) / 127.5 - 1, 1), LARGEST_SINGLE)
