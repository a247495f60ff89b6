"""Grids of sample images, as PNG files."""

import io
from math import log
from pathlib import Path

from PIL import Image
from torch import Tensor

from progdist._utils.files import atomic_write
from progdist.data.images import to_uint8

GRID = 64  # images in a run's sample grid, eight per row
GAP = 1  # grey pixels between the images of a grid
TILE = 64  # pixels to which the longer side of a small image is enlarged, at least, for people to see
SHAPE = 4 / 3  # of a grid, width by height


def grid_image(images: Tensor, columns: int) -> Image.Image:
    """Arrange images (B, C, H, W) in [-1, 1] in one image, row by row with a gap of one pixel."""
    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    sheet = Image.new("L", size, 128) if channels == 1 else Image.new("RGB", size, (128, 128, 128))
    for index, image in enumerate(pixels):
        tile = Image.fromarray(image[..., 0] if channels == 1 else image)
        sheet.paste(tile, (index % columns * (width + GAP), index // columns * (height + GAP)))
    return sheet


def enlargement(height: int, width: int) -> int:
    """The whole factor by which small images are enlarged to TILE pixels or more; 1 for others."""
    return max(1, -(-TILE // max(height, width)))


def columns_for(count: int, height: int, width: int) -> int:
    """The columns of a grid near SHAPE, with few places left empty in its last row."""

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        return abs(log(columns * width / (rows * height) / SHAPE)) + 4 * (rows * columns - count) / (rows * columns)

    return min(range(1, count + 1), key=cost)


def write_grid(images: Tensor, path: Path, columns: int = 8, factor: int = 1) -> None:
    """Write images (B, C, H, W) in [-1, 1] as one PNG, each pixel enlarged to a square of `factor` pixels."""
    buffer = io.BytesIO()
    if factor > 1:
        images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    grid_image(images, columns).save(buffer, format="png")
    atomic_write(path, buffer.getvalue())
