"""Images as tensors in [-1, 1] with labels.

A source is one of

    digits          scikit-learn's 1,797 handwritten digits, 8x8, ten classes (embedded, nothing to fetch)
    folder:PATH     image files; class folders give labels, a flat folder gives none; hidden files are skipped; of
                    train/, val/ and test/ the images of train/ are read
    captions:PATH   image files with captions (see `folders`)
    idx:PATH        a folder with MNIST-format files, gzipped or not
    cifar:PATH      the folder of CIFAR-10's binary or python version
    npz:PATH        arrays `images` (N, H, W) or (N, H, W, C), uint8 or float in [-1, 1], and `labels` (N,) if any; or
                    `arr_0` and `arr_1`
    hub:NAME        a Hugging Face data set (extra `hub`)
    wds:PATH        WebDataset tar shards that stream (extra `stream`)
    parquet:PATH    Parquet files that stream (extra `stream`)

PATH is used as written if it exists; otherwise `~` is the home folder, and `wds:` and `parquet:` take it as a pattern.
Image files are those that Pillow opens, and are read as a viewer shows them (see `progdist.data.pictures`). Labels are
integers, or names, which are numbered (see `progdist.data.labels`). For `hub:`, `wds:` and `parquet:` the image and
caption columns can be named (see `progdist.data.tables`).

With a `size`, an image is centre-cropped to a square and resampled to size x size: by `area` (each new pixel is the
mean of the old ones it covers) or `bilinear` (with antialiasing). Without one, all images must have one size. Instead
of the centre crop, several random crops of each image can be taken (`cropped`).
"""

import logging
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from progdist._utils.digest import digest
from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist._utils.random import CROPS, generator
from progdist.data.folders import open_captions, open_folder
from progdist.data.formats import in_range, read_cifar, read_idx, read_npz
from progdist.data.images import ArrayReader, Images, ImageTransform, Reader, Resample
from progdist.data.labels import read_labels
from progdist.data.samples import is_teacher
from progdist.data.streams import StreamedImages
from progdist.data.tables import Columns, open_hub, open_parquet, open_webdataset

LOG = logging.getLogger("progdist")


def load_images(
    source: str,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    resample: Resample = "area",
    background: str | None = None,
    crops: int = 1,
    seed: int = 0,
    image_column: str | None = None,
    caption_column: str | None = None,
    notify: Callable[[str], None] = LOG.warning,
) -> Images:
    """Load the images of a source as training sees them: a recipe with the same `data` trains on them.

        images = progdist.load_images("folder:photos", size=64, channels=3)
        x, label = images[0]            # (3, 64, 64), float32 in [-1, 1]; an int
        images.classes[label]           # the name of its folder

    An image is upright (EXIF), composed on the background if it is transparent, and scaled to 8 bits if it has more; of
    an animation the first frame is read. See `progdist.data.pictures`.

    Args:
        source: one of the above, e.g. "folder:photos".
        size: height and width in pixels, after a centre crop; None if all images have one size.
        channels: 1 for grey, 3 for RGB; None for grey if all images are grey, else RGB.
        resample: "area" or "bilinear".
        background: the colour behind transparent pixels, e.g. "black" or "#ff8800"; None for white.
        crops: square crops of each image along its longer side, at random places; requires `size`.
        seed: seed for the places of the crops.
        image_column: a table's column of images; None for the first of IMAGE_COLUMNS.
        caption_column: a table's column of captions; None for labels instead.
        notify: called with a line about everything that is converted or skipped.

    Returns:
        A data set of (image, label) pairs: float32 (C, H, W), black at -1 and white at 1, and an int, 0 if there are no
        labels. `shape` is (C, H, W), `labels` int64 (N,) or None, and `classes` names the labels, or the captions.

    Raises:
        UserError: an argument has a wrong type or value; the source is unknown, missing, empty or damaged; a column is
            given for a source without tables, or a background for one without transparency.
    """
    for name, value in (("image_column", image_column), ("caption_column", caption_column)):
        if value is not None and not isinstance(value, str):
            raise UserError(f"{name} is {value!r}, expected the name of a column, or None")
    for name, value, least in (("crops", crops, 1), ("seed", seed, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise UserError(f"{name} is {value!r}, expected a whole number, at least {least}")
    if crops > 1 and size is None:
        raise UserError("crops requires size: set both, or remove crops")
    transform = ImageTransform(size, channels, resample, background)
    images = open_source(source, transform, Columns(image_column, caption_column))
    for line in images.remarks():
        notify(line)
    return cropped(images, crops, seed) if crops > 1 else images


def open_source(source: str, transform: ImageTransform = ImageTransform(), columns: Columns = Columns()) -> Images:  # noqa: B008
    """Like `load_images`, with a transform and columns."""
    if not isinstance(source, str):
        raise UserError(f'source is {source!r}, expected text such as "folder:photos"')
    scheme, _, path_text = source.partition(":")
    if transform.background is not None and scheme in _ARRAYS:
        raise UserError(f"{source} has no transparency: remove background, which applies only to image files")
    if columns and scheme not in _TABLES:
        tables = ", ".join(f"{name}:" for name in _TABLES)
        raise UserError(f"image_column and caption_column apply only to {tables}, got {source}: remove them")
    if scheme == "digits":
        return _digits(transform)
    if is_teacher(source):
        raise UserError(
            f"{source} applies only to `progdist distill` and recipes: give a source of images, or from Python the "
            "output of progdist.sample"
        )
    if scheme in _TABLES and path_text:
        return _TABLES[scheme](path_text, transform, columns)
    if scheme in _READERS and path_text:
        return _READERS[scheme](path_text, transform)
    kinds = ", ".join(["digits", *(f"{name}:PATH" for name in (*_READERS, *_TABLES))])
    is_folder = source and local_path(source).is_dir()
    hint = f"folder:{source}" if is_folder else f"one of {kinds}"
    raise UserError(f"data source {source!r} is unknown: use {hint}")


@dataclass(frozen=True)
class Crops:
    """`count` (n) square crops of each image of a reader: crop j of image i has index n i + j.

    They are spread evenly along the longer side from a random start, at the places (j + u) / n with u uniform in [0, 1)
    for each image, a function of (seed, i): a crop is an example like any other, and latents are encoded once.
    """

    reader: Reader
    count: int
    seed: int

    def __call__(self, index: int) -> Tensor:
        """Crop (C, H, W) in [-1, 1]."""
        return self.reader(*self._position(index))

    def fingerprint(self) -> str:
        """As in `Reader`."""
        return digest(self.reader.fingerprint(), self.count, self.seed)

    def frame(self, index: int) -> tuple[int, int, int, int]:
        """(height, width, top, left) as in `ImageTransform.frame`."""
        return self.reader.frame(*self._position(index))

    def remarks(self, count: int) -> list[str]:
        """The remarks of the images."""
        return self.reader.remarks(count // self.count)

    def _position(self, index: int) -> tuple[int, float]:
        image, number = divmod(index, self.count)
        start = torch.rand((), generator=generator(self.seed, CROPS, image), dtype=torch.float64)
        return image, (number + float(start)) / self.count


def cropped(images: Images, count: int, seed: int) -> Images:
    """Take `count` random crops of each image, one after another; not of a stream, nor of square images."""
    if isinstance(images, StreamedImages) or not isinstance(images.get, Reader):
        raise UserError(
            f"{images.name} is a stream, which gives one crop per image: remove data.crops (crops=), or use folder:"
        )
    if isinstance(images.get, ArrayReader) and len(set(images.get.size(0))) == 1:
        raise UserError(f"{images.name} holds square images, which have one crop: remove data.crops (crops=)")
    labels = None if images.labels is None else images.labels.repeat_interleave(count)
    get = Crops(images.get, count, seed)
    kept = {"shape": images.shape, "notes": images.notes}
    return type(images)(images.name, count * len(images), get, labels, images.classes, **kept)


def _digits(transform: ImageTransform) -> Images:
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, labels = cast(tuple[NDArray[Any], NDArray[Any]], load_digits(return_X_y=True))
    return _array("digits", pixels.astype(np.uint8).reshape(-1, 8, 8), labels, transform, white=16.0)


def _idx(path_text: str, transform: ImageTransform) -> Images:
    root = local_path(path_text)
    images, labels = (next(iter(sorted(root.glob(f"train-{part}*"))), None) for part in ("images", "labels"))
    if images is None:
        raise UserError(
            f"idx:{path_text} has no train-images file: for Fashion-MNIST install Debian's dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or fetch the four files and set data.source to idx:FOLDER, "
            "their folder"
        )
    return _array(f"idx:{path_text}", read_idx(images), read_idx(labels) if labels else None, transform)


def _cifar(path_text: str, transform: ImageTransform) -> Images:
    return _array(f"cifar:{path_text}", *read_cifar(local_path(path_text)), transform)


def _npz(path_text: str, transform: ImageTransform) -> Images:
    try:
        images, labels = read_npz(local_path(path_text))
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, *_NOT_ARRAYS) as error:
        raise UserError(
            f"npz:{path_text} cannot be read ({str(error)[:200]}): expected arrays `images` and `labels`"
        ) from error
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise UserError(f"npz:{path_text}: images are {images.shape}, expected (N, H, W) or (N, H, W, 1 or 3)")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise UserError(
            f"npz:{path_text}: images are {images.dtype}, expected uint8, or floats in [-1, 1]: convert them"
        )
    if images.dtype not in (np.uint8, np.float16, np.float32, np.float64):  # another byte order, or longer than torch's
        images = images.astype(np.float32)
    return _array(f"npz:{path_text}", images, labels, transform)


_NOT_ARRAYS = (AttributeError, SyntaxError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile, zlib.error)
"""Errors of numpy and zipfile for damaged files other than ValueError and the like."""


def _array(
    name: str, pixels: NDArray[Any], labels: NDArray[Any] | None, transform: ImageTransform, white: float = 255.0
) -> Images:
    """Images (N, H, W[, 1 or 3]), kept unchanged and framed when read."""
    pixels, notes = in_range(name, pixels) if white == 255 else (pixels, ())
    get = ArrayReader(transform, pixels, white)
    if labels is None:
        return Images(name, len(pixels), get, None, notes=notes)
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        return Images(name, len(pixels), get, torch.from_numpy(labels.astype(np.int64)), notes=notes)
    if labels.ndim == 0:
        raise UserError(f"{name}: labels are {labels.dtype} of shape (), expected one per image (N,)")
    known = read_labels(labels.tolist(), lambda index: f"{name}: image {index}")
    return Images(name, len(pixels), get, known.values, known.names, notes=(*notes, *known.notes))


_ARRAYS = ("digits", "idx", "cifar", "npz")  # sources of arrays, which are read without conversion

_READERS: dict[str, Callable[[str, ImageTransform], Images]] = {
    "folder": open_folder,
    "captions": open_captions,
    "idx": _idx,
    "cifar": _cifar,
    "npz": _npz,
}

_TABLES: dict[str, Callable[[str, ImageTransform, Columns], Images]] = {
    "hub": open_hub,
    "wds": open_webdataset,
    "parquet": open_parquet,
}
