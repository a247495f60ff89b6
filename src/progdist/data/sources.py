"""Images as tensors in [-1, 1] with labels.

A source is one of

    digits          scikit-learn's 1,797 handwritten digits, 8x8, ten classes (embedded, nothing to fetch)
    folder:PATH     image files; class folders give labels, a flat folder gives none; hidden files are passed over
    captions:PATH   image files with captions (see `folders`)
    idx:PATH        a folder with MNIST-format files, gzipped or not
    cifar:PATH      the folder of CIFAR-10's binary or python version
    npz:PATH        arrays `images` (N, H, W) or (N, H, W, C), uint8 or float in [-1, 1], and `labels` (N,) if any; or
                    `arr_0` and `arr_1`
    hub:NAME        a Hugging Face data set (extra `hub`)
    wds:PATH        WebDataset tar shards that stream (extra `stream`)
    parquet:PATH    Parquet files that stream (extra `stream`)

Of `hub:`, `wds:` and `parquet:` the columns of image and caption can be named (see `progdist.data.tables`).

With a `size`, an image is centre-cropped to a square and resampled to size x size: by `area` (each new pixel is the
mean of the old ones it covers) or `bilinear` (with antialiasing). Without one, all images must have one size. In place
of the centre several random crops of each image can be taken (`cropped`).
"""

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.random import CROPS, generator
from progdist.data.folders import open_captions, open_folder
from progdist.data.formats import read_cifar, read_idx, read_npz
from progdist.data.images import ArrayReader, Images, ImageTransform, Reader, Resample
from progdist.data.tables import Columns, open_hub, open_parquet, open_webdataset


def load_images(
    source: str,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    resample: Resample = "area",
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Images:
    """The images of a source as training sees them.

    Args:
        source: one of the above, e.g. "folder:photos".
        size: height and width in pixels, after a centre crop; None where all images have one size.
        channels: 1 for grey, 3 for RGB; None for grey where the images are, and RGB elsewhere.
        resample: "area" or "bilinear".
        image_column: column of a table with the images; None for the first of IMAGE_COLUMNS.
        caption_column: column of a table with the captions; None for labels in their place.

    Returns:
        A data set of (image (C, H, W) in [-1, 1], label) pairs. `classes` names the labels, or the captions.

    Raises:
        UserError: the source is unknown, missing, empty or damaged, or it is no table and a column is named.
    """
    return open_source(source, ImageTransform(size, channels, resample), Columns(image_column, caption_column))


def open_source(source: str, transform: ImageTransform = ImageTransform(), columns: Columns = Columns()) -> Images:  # noqa: B008
    """As `load_images`, of a transform and columns."""
    scheme, _, path_text = source.partition(":")
    if columns and scheme not in _TABLES:
        tables = ", ".join(f"{name}:" for name in _TABLES)
        raise UserError(f"{source} has no columns to be named: leave image and caption columns, which are of {tables}")
    if scheme == "digits":
        return _digits(transform)
    if scheme in _TABLES and path_text:
        return _TABLES[scheme](path_text, transform, columns)
    if scheme in _READERS and path_text:
        return _READERS[scheme](path_text, transform)
    kinds = ", ".join(["digits", *(f"{name}:PATH" for name in (*_READERS, *_TABLES))])
    raise UserError(f"data source {source!r} is unknown: use one of {kinds}")


@dataclass(frozen=True)
class Crops:
    """`count` (n) square crops of each image of a reader: crop j of image i is number n i + j.

    They are spread evenly along the longer side from a random start, at the places (j + u) / n with u uniform in [0, 1)
    for each image, a function of (seed, i): a crop is an example like any other, and latents are encoded once.
    """

    reader: Reader
    count: int
    seed: int

    def __call__(self, index: int) -> Tensor:
        """Crop (C, H, W) in [-1, 1]."""
        return self.reader(*self._position(index))

    def frame(self, index: int) -> tuple[int, int, int, int]:
        """(height, width, top, left) as in `ImageTransform.frame`."""
        return self.reader.frame(*self._position(index))

    def _position(self, index: int) -> tuple[int, float]:
        image, number = divmod(index, self.count)
        start = torch.rand((), generator=generator(self.seed, CROPS, image), dtype=torch.float64)
        return image, (number + float(start)) / self.count


def cropped(images: Images, count: int, seed: int) -> Images:
    """Random crops of each image, `count` of each, one after another; not of a stream, nor of square images."""
    if not isinstance(images.get, Reader):
        raise UserError(f"{images.name} is read as it comes, one crop of each image: leave data.crops, or give folder:")
    if isinstance(images.get, ArrayReader) and len(set(images.get.size(0))) == 1:
        raise UserError(f"{images.name} holds square images, of which there is one crop: leave data.crops")
    labels = None if images.labels is None else images.labels.repeat_interleave(count)
    get = Crops(images.get, count, seed)
    return type(images)(images.name, count * len(images), get, labels, images.classes, shape=images.shape)


def _digits(transform: ImageTransform) -> Images:
    from sklearn.datasets import load_digits  # a second to import: only where it is used

    pixels, labels = cast(tuple[NDArray[Any], NDArray[Any]], load_digits(return_X_y=True))
    return _array("digits", pixels.astype(np.uint8).reshape(-1, 8, 8), labels, transform, white=16.0)


def _idx(path_text: str, transform: ImageTransform) -> Images:
    root = Path(path_text).expanduser()
    images, labels = (next(iter(sorted(root.glob(f"train-{part}*"))), None) for part in ("images", "labels"))
    if images is None:
        raise UserError(
            f"idx:{path_text} holds no train-images file: for Fashion-MNIST install Debian's dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or fetch the four files and name their folder with "
            "--set data.source=idx:FOLDER"
        )
    return _array(f"idx:{path_text}", read_idx(images), read_idx(labels) if labels else None, transform)


def _cifar(path_text: str, transform: ImageTransform) -> Images:
    return _array(f"cifar:{path_text}", *read_cifar(Path(path_text).expanduser()), transform)


def _npz(path_text: str, transform: ImageTransform) -> Images:
    try:
        images, labels = read_npz(Path(path_text).expanduser())
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, *_NOT_ARRAYS) as error:
        raise UserError(
            f"npz:{path_text} cannot be read ({str(error)[:200]}): expected arrays `images` and `labels`"
        ) from error
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise UserError(f"npz:{path_text}: images are {images.shape}, expected (N, H, W) or (N, H, W, 1 or 3)")
    if images.dtype != np.uint8:
        floats = np.issubdtype(images.dtype, np.floating)
        if not floats or (images.size and not (images.min() >= -1 and images.max() <= 1)):
            raise UserError(f"npz:{path_text}: images are {images.dtype}, expected uint8, or floats in [-1, 1]")
    if images.dtype not in (np.uint8, np.float16, np.float32, np.float64):  # another byte order, or longer than torch's
        images = images.astype(np.float32)
    return _array(f"npz:{path_text}", images, labels, transform)


_NOT_ARRAYS = (AttributeError, SyntaxError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise of damaged files beside ValueError and the like."""


def _array(
    name: str, pixels: NDArray[Any], labels: NDArray[Any] | None, transform: ImageTransform, white: float = 255.0
) -> Images:
    """Images (N, H, W[, 1 or 3]), kept as they are and framed when they are read."""
    if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"{name}: labels are {labels.dtype} of shape {labels.shape}, expected whole numbers (N,)")
    tensor = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Images(name, len(pixels), ArrayReader(transform, pixels, white), tensor)


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
