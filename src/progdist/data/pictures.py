r"""An image file as a viewer shows it: upright, over a background, in 8 bits, grey or RGB.

    upright       turned as its EXIF orientation says, 1 to 8
    composed      alpha a and colour x over a background b: a x + (1 - a) b; a palette's and a PNG's tRNS are alpha, too
    in 8 bits     from values 0 to white: round(255 x / white)

Every source reads its images here. Any file that Pillow opens is read; of an animation, the first frame.
"""

import importlib
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, UnidentifiedImageError

from progdist._utils.errors import UserError

NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
"""Formats that Pillow only knows by name, or passes to another program."""

GREY = {"1", "L", "LA", "La", "I", "F"}  # one-channel modes; those of 16 bits are I;16, I;16B, ...
WHITES = (255, 1023, 4095, 16383, 65535)  # for 8, 10, 12, 14 and 16 bits
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operations that undo an EXIF orientation; 5 to 8 exchange width and height."""

Colour = tuple[int, int, int]

UNREADABLE = (
    *(UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, struct.error),
    *(Image.DecompressionBombError, LookupError, ArithmeticError, AttributeError, RuntimeError),
)
"""Pillow's errors for damaged files."""


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Names of the formats that can be read, with HEIF if pillow-heif is installed."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in Image.ID if name not in NOT_READ)


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Suffixes of those formats, in lower case."""
    readable_formats = {*formats(), "MPO"}  # a JPEG with several images
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable_formats)


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is an image file, by its suffix, or by its first bytes if it has none; not a special file."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix and suffix not in suffixes():
        return False
    return leads_to(entry.is_file) and (bool(suffix) or _begins_as_image(entry.path))


def leads_to(is_kind: Callable[[], bool]) -> bool:
    """Whether an entry is a file or a folder; false for circular links and unreadable targets."""
    try:
        return is_kind()
    except OSError:
        return False


def _begins_as_image(path: str) -> bool:
    known = [name for name in formats() if Image.OPEN[name][1] is not None]  # formats with a signature
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=known):
            return True
    except Image.DecompressionBombError:  # refused when it is read
        return True
    except UNREADABLE:
        return False


@contextmanager
def readable(image: str) -> Iterator[None]:
    """The context in which an image of that name is decoded. Raise a UserError for a damaged one."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{image} has more pixels than Pillow's limit of {limit:,}: reduce or remove it") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{image} cannot be read as an image (no format that Pillow reads): fix or remove it"
        ) from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{image} cannot be read as an image ({reason}): fix or remove it") from error


@contextmanager
def open_image(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image file or its bytes with Pillow, without its warnings; raises as `readable` does."""
    with readable(name), warnings.catch_warnings(action="ignore"), Image.open(file, formats=formats()) as image:
        yield image


def background_colour(background: str | None) -> Colour:
    """The colour (red, green, blue) of a name or a code such as "#ff8800"; white for None."""
    try:
        colour = ImageColor.getrgb("white" if background is None else background)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f'background {background!r} is unknown: use the name of a colour, e.g. "black", or a code, e.g. "#ff8800"'
        ) from error
    if len(colour) != 3:
        raise UserError(f"background {background!r} is transparent: use an opaque colour, e.g. black")
    return colour


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened image after `as_seen`."""
    turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow gives the upright size of a TIFF
    return (image.height, image.width) if turned else (image.width, image.height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return orientation if orientation in TURNS else 1


def is_grey(image: Image.Image) -> bool:
    """Whether an opened image has no colour."""
    return image.mode in GREY or is_deep(image) or _raw_mode(image) == "LA;16B"  # Pillow makes it RGBA


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits, which Pillow keeps only for single channels."""
    return image.mode[0] in "IF"


def as_seen(image: Image.Image, background: Colour, whites: Mapping[str, float]) -> Image.Image:
    """An opened image, upright, composed and in 8 bits, as L or RGB.

    `whites` are the values of white of deep images by mode; brighter values are white, too. For a mode without an entry
    the image's own values decide.
    """
    transparent, grey = image.has_transparency_data, is_grey(image)
    key = _transparent_value(image) if transparent else None
    image.load()
    turn = TURNS.get(_orientation(image))
    if is_deep(image):
        values = np.asarray(image)
        image = _in_8_bits(image, values, whites)
        if transparent:
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    elif image.mode == "LAB":
        raise ValueError("its mode is LAB, expected grey, RGB, a palette, CMYK or YCbCr")
    elif key is not None:
        image.info["transparency"] = key
    image = _composed(image, background) if transparent else image.convert("L" if grey else "RGB")
    if grey and len(set(background)) == 1:
        image = image.convert("L")
    return image if turn is None else image.transpose(turn)


def _composed(image: Image.Image, background: Colour) -> Image.Image:
    """Convert an image with alpha to RGB."""
    image = image.convert("LA") if image.mode == "La" else image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA")).convert("RGB")


def _transparent_value(image: Image.Image) -> Any:  # noqa: ANN401
    """The pixel that tRNS makes transparent, as Pillow decodes it, of an image not yet loaded; else Pillow's value.

    tRNS has the file's bits. Pillow scales pixels of 2 and 4 bits to 8, and keeps the upper 8 of RGB's 16.
    """
    value, stored = image.info.get("transparency"), _raw_mode(image)
    if isinstance(value, int) and stored in ("L;2", "L;4"):
        return value * {"L;2": 85, "L;4": 17}[stored]
    if isinstance(value, tuple) and stored == "RGB;16B":
        return tuple(number >> 8 for number in value)
    return value


def _raw_mode(image: Image.Image) -> str:
    """How the pixels of a PNG are stored, in Pillow's words; empty for a loaded image or another format."""
    tiles = getattr(image, "tile", [])
    return str(tiles[0].args) if tiles and image.format == "PNG" else ""


def _in_8_bits(image: Image.Image, values: NDArray[Any], whites: Mapping[str, float]) -> Image.Image:
    low, high = extremes(values)
    stated, of_set = stated_white(image), whites.get(image.mode)
    white = stated or of_set or white_of(image.mode, low, high)
    if not stated and of_set and low >= 0 and high > of_set and white_of(image.mode, low, high):
        values, high = np.minimum(values, of_set), of_set  # brighter than all examined images
    if not (low >= 0 and high <= white):
        raise ValueError(f"{_held(image.mode, low, high)}, but others of its mode 0 to {white:g}: scale all alike")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def extremes(values: NDArray[Any]) -> tuple[float, float]:
    """The smallest and the largest value; NaN if any is."""
    return float(values.min()), float(values.max())


def stated_white(image: Image.Image) -> float | None:
    """The value of white that the file of a deep image states, or None.

    A ValueError where white is 0.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if tags.get(262) == 0:  # PhotometricInterpretation: WhiteIsZero, which Pillow ignores here
        raise ValueError(f"mode {image.mode} with white as 0 is supported only for 8 bits: save it with black as 0")
    if image.mode != "F" and image.format in ("PPM", "JPEG2000"):  # Pillow scales these to 16 bits
        return 65535.0
    return 4095.0 if tags.get(258) in (12, (12,)) else None  # BitsPerSample


def white_of(mode: str, low: float, high: float) -> float:
    """The value of white of deep images with values from `low` to `high`: the smallest of WHITES, or 1 for floats.

    Raise a ValueError for values that are negative, not finite or too large, or that would be nearly black.
    """
    whites = (1, *WHITES) if mode == "F" else WHITES
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None or (white > 1 and 0 < high < 16):
        listed = ", ".join(f"{white:,}" for white in whites[:-1])
        raise ValueError(f"{_held(mode, low, high)}, expected 0 to {listed} or {whites[-1]:,}: scale them")
    return float(white)


def _held(mode: str, low: float, high: float) -> str:
    finite = np.isfinite([low, high]).all()
    return f"mode {mode} with values " + (f"from {low:g} to {high:g}" if finite else "that are not finite")
