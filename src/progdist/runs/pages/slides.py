"""The images of a run's page: for every step count, grids, and single images with captions by guidance scale."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from progdist._utils.files import read_json
from progdist.data.grid import GAP, GRID
from progdist.evaluation.record import EvaluationRecord
from progdist.runs.evaluator import SHOWN
from progdist.runs.folder import RunFolder

LARGEST = 1024  # pixels to which the page reduces the longer side of a grid; its file keeps the full size
LARGEST_SINGLE = 192  # the same for a single image

TITLES = {  # the models compared at one step count, in the page's order
    "teacher": "Teacher, DDIM",
    "converted": "Converted teacher (stage 0), DDIM",
    "teacher_dpmpp": "Teacher, DPM-Solver++",
    "student": "Student",
}

Rows = Mapping[int, Mapping[str, EvaluationRecord]]  # records by step count and model


def captions(records: Iterable[EvaluationRecord]) -> tuple[str, ...]:
    """The captions of the images that are shown one by one; empty if there are none."""
    return next((record.captions for record in records if record.captions), ())


def shown_scales(records: Iterable[EvaluationRecord]) -> dict[str, Any] | None:
    """The guidance scales of the page, and the measured one; None for a run with at most one scale."""
    guided = [record for record in records if record.guidance_grids]
    scales = sorted({scale for record in guided for scale in record.guidance_grids})
    return {"scales": [f"{scale:g}" for scale in scales], "measured": f"{guided[0].guidance:g}"} if scales else None


def slides(folder: RunFolder, rows: Rows) -> list[dict[str, Any]]:
    """The sample grids of every step count as data URIs with their records, and single images by guidance scale."""
    records = [row[model] for row in rows.values() for model in TITLES if model in row]
    count, guidance = len(captions(records)), shown_scales(records)
    scales = guidance["scales"] if guidance and count else [None] * bool(count)
    return [
        {
            "steps": steps,
            "grids": [grid for model in TITLES if (grid := _grid(folder.grid, row.get(model)))],
            "nearest": [pairs for model in TITLES if (pairs := _grid(folder.nearest, row.get(model)))],
            "singles": [
                {"scale": scale, "models": [one for m in TITLES if (one := _singles(folder, row.get(m), scale, count))]}
                for scale in scales
            ],
        }
        for steps, row in rows.items()
    ]


def _grid(place: Callable[[str, int], Path], record: EvaluationRecord | None) -> dict[str, Any]:
    """The images of a measurement, at the path of its model and steps; empty if there are none."""
    if record is None or not (path := place(record.model, record.steps)).is_file():
        return {}
    image, width, height = embedded(path, path.stat().st_mtime_ns)
    shown = {"model": record.model, "title": TITLES[record.model], "record": record}
    return shown | {"image": image, "width": width, "height": height}


def _singles(folder: RunFolder, record: EvaluationRecord | None, scale: str | None, count: int) -> dict[str, Any]:
    """The first images of a measurement at one guidance scale, with its record if that scale is measured."""
    if record is None:
        return {}
    measured = scale is None or scale == f"{record.guidance or 0:g}"
    path = folder.grid(record.model, record.steps, None if measured or scale is None else float(scale))
    if not path.is_file():
        return {}
    high = -(-min(GRID, record.quality[0].samples) // SHOWN) if measured else 1
    images, width, height = single_images(path, path.stat().st_mtime_ns, high)
    shown = {"model": record.model, "title": TITLES[record.model], "record": record if measured else None}
    return shown | {"images": images[:count], "width": width, "height": height}


def training_images(folder: RunFolder) -> dict[str, Any]:
    """The images of `progdist.runs.training_images` as data URIs with width, height and names; empty if none."""
    path = folder.training_images()
    if not path.is_file() or not path.with_suffix(".json").is_file():
        return {}
    kept = read_json(path.with_suffix(".json"))
    singles, width, height = single_images(path, path.stat().st_mtime_ns, 1)
    names = kept["names"] or [""] * kept["count"]
    return {"images": list(zip(singles, map(str, names), strict=False)), "width": width, "height": height}


@lru_cache(maxsize=128)
def embedded(path: Path, changed: int) -> tuple[str, int, int]:
    """An image as a data URI, no side above LARGEST; its width and height. `changed` is when the file was."""
    with Image.open(path) as image:
        return embed(image)


@lru_cache(maxsize=512)
def single_images(path: Path, changed: int, rows: int) -> tuple[list[str], int, int]:
    """The first row of a grid of `rows` as data URIs, no side above LARGEST_SINGLE; the width and height of each."""
    with Image.open(path) as grid:
        width, height = (grid.width + GAP) // SHOWN - GAP, (grid.height + GAP) // rows - GAP
        boxes = ((left, 0, left + width, height) for left in range(0, grid.width, width + GAP))
        singles = [embed(grid.crop(box), LARGEST_SINGLE) for box in boxes]
    return [image for image, _, _ in singles], *singles[0][1:]


def embed(image: Image.Image, longest: int = LARGEST) -> tuple[str, int, int]:
    """An image as a data URI, a PNG, or a JPEG whose longer side is reduced to `longest`; its width and height."""
    kind, options = "png", {}
    if max(image.size) > longest:
        image, kind, options = image.convert("RGB"), "jpeg", {"quality": 85}
        image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return data_uri(kind, buffer.getvalue()), *image.size


def data_uri(kind: str, content: bytes) -> str:
    """An image file of a kind, e.g. `png`, as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
