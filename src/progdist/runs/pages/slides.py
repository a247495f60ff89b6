"""The images of a run's page: for every step count whole grids, and single images with captions at guidance scales."""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from progdist.data.grid import GAP, GRID
from progdist.runs.folder import Record, RunFolder
from progdist.runs.shown_images import SHOWN

LARGEST = 1024
"""Pixels to which the longer side of a grid is reduced in the page; the file beside it keeps all of them."""

LARGEST_SINGLE = 192
"""Likewise of an image that is shown by itself."""

TITLES = {"teacher": "Teacher, DDIM", "teacher_dpmpp": "Teacher, DPM-Solver++", "student": "Student"}
"""What is compared at one step count, in the order of the page."""


def captions(records: Sequence[Record]) -> list[str]:
    """What the images that are shown one by one were made of; empty where the run shows none so."""
    return next((record["captions"] for record in records if "captions" in record), [])


def guidance_dial(records: Sequence[Record]) -> dict[str, Any] | None:
    """The guidance scales of the page, and which of them is measured; None for a run that has only one or none."""
    known = [record for record in records if "guidance_grids" in record]
    scales = sorted({scale for record in known for scale in record["guidance_grids"]})
    return {"scales": [f"{scale:g}" for scale in scales], "measured": f"{known[0]['guidance']:g}"} if scales else None


def slides(folder: RunFolder, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every step count the sample grids as data URIs with the distances beside them, and single images by scale.

    Args:
        folder: of the run.
        rows: as of `report.quality_rows`.
    """
    records = [row[model] for row in rows for model in TITLES if model in row]
    count, dial = len(captions(records)), guidance_dial(records)
    scales = dial["scales"] if dial else [None]
    return [
        {
            "steps": row["steps"],
            "grids": _grids(folder, row),
            "singles": [{"scale": scale, "models": _singles(folder, row, scale, count)} for scale in scales if count],
        }
        for row in rows
    ]


def _grids(folder: RunFolder, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole grids of one step count."""
    shown = []
    for model, title in TITLES.items():
        path = folder.grid(model, row["steps"])
        if model in row and path.is_file():
            picture, width, height = embedded(path, path.stat().st_mtime_ns)
            numbers = {"frechet": row[model]["frechet"], "rmse": row[model]["rmse"]}
            shown.append({"model": model, "title": title, "image": picture, "width": width, "height": height} | numbers)
    return shown


def _singles(folder: RunFolder, row: dict[str, Any], scale: str | None, count: int) -> list[dict[str, Any]]:
    """The first images of every model at one step count and guidance scale; the distances where it is measured."""
    shown = []
    for model, title in TITLES.items():
        if model not in row:
            continue
        measured = scale is None or scale == f"{row[model].get('guidance', 0):g}"
        path = folder.grid(model, row["steps"], None if measured or scale is None else float(scale))
        if path.is_file():
            high = -(-min(GRID, row[model]["samples"]) // SHOWN) if measured else 1
            images, width, height = single_images(path, path.stat().st_mtime_ns, high)
            size = {"images": images[:count], "width": width, "height": height}
            numbers = {name: row[model][name] for name in ("frechet", "rmse")} if measured else {}
            shown.append({"model": model, "title": title, **size, **numbers})
    return shown


@lru_cache(maxsize=128)
def embedded(path: Path, changed: int) -> tuple[str, int, int]:
    """An image as a data URI, no side over LARGEST; its width and height. `changed` is when the file was."""
    with Image.open(path) as image:
        if max(image.size) <= LARGEST:
            return _data_uri("png", path.read_bytes()), *image.size
        return _reduced(image, LARGEST)


@lru_cache(maxsize=512)
def single_images(path: Path, changed: int, rows: int) -> tuple[list[str], int, int]:
    """The first row of a grid, as data URIs with no side over LARGEST_SINGLE; the width and height of each.

    Args:
        path: of the grid, SHOWN images wide.
        changed: when the file was.
        rows: that the grid has.
    """
    found = []
    with Image.open(path) as grid:
        width, height = (grid.width + GAP) // SHOWN - GAP, (grid.height + GAP) // rows - GAP
        for left in range(0, grid.width, width + GAP):
            found.append(_single(grid.crop((left, 0, left + width, height))))
    return [image for image, _, _ in found], *found[0][1:]


def _single(image: Image.Image) -> tuple[str, int, int]:
    """One image as a data URI, its width and height."""
    if max(image.size) > LARGEST_SINGLE:
        return _reduced(image, LARGEST_SINGLE)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return _data_uri("png", buffer.getvalue()), *image.size


def _reduced(image: Image.Image, longest: int) -> tuple[str, int, int]:
    """An image with its longer side reduced to so many pixels, as the data URI of a JPEG; its width and height."""
    smaller, buffer = image.convert("RGB"), io.BytesIO()
    smaller.thumbnail((longest, longest))
    smaller.save(buffer, "jpeg", quality=85)
    return _data_uri("jpeg", buffer.getvalue()), *smaller.size


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
