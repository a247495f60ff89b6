"""Grids of sample images, as PNG files."""

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from progdist._utils.files import atomic_write
from progdist.data.images import to_uint8

GRID = 64  # images in a run's sample grid, eight per row
GAP = 1  # grey pixels between the images of a grid


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


def write_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write images (B, C, H, W) in [-1, 1] as one PNG."""
    buffer = io.BytesIO()
    grid_image(images, columns).save(buffer, format="png")
    atomic_write(path, buffer.getvalue())
