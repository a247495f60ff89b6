"""Images in, as tensors in [-1, 1] with labels.

A source is named in one word:

    digits          scikit-learn's 1,797 handwritten digits, 8x8, ten classes (embedded, nothing to fetch)
    folder:PATH     image files; class folders give labels, a flat folder gives none; hidden files are passed over
    captions:PATH   image files with captions (see `captions`)
    idx:PATH        a folder with MNIST-format files, gzipped or not
    cifar:PATH      the folder of CIFAR-10's binary or python version
    npz:PATH        arrays `images` (N, H, W) or (N, H, W, C), uint8 or float in [-1, 1], and `labels` (N,) if any
    hub:NAME        a Hugging Face data set (extra `hub`)
    wds:PATH        WebDataset tar shards that stream (extra `stream`; see `progdist.data.streams`)
    parquet:PATH    Parquet files that stream (extra `stream`)

With a `size`, an image is centre-cropped to a square and resampled to size x size: by `area` (each new pixel is the
mean of the old ones it covers) or `bilinear` (with antialiasing). Without one, all images must have one size.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.data.folders import open_captions, open_folder
from progdist.data.formats import read_cifar, read_idx, read_npz
from progdist.data.images import ArrayReader, Images, ImageTransform, Reader
from progdist.data.streams import open_parquet, open_webdataset


def load_images(source: str, transform: ImageTransform | None = None) -> Images:
    """Open a source by its name.

    Raises:
        UserError: the source is unknown, missing, empty or damaged.
    """
    scheme, _, path_text = source.partition(":")
    transform = transform or ImageTransform()
    if scheme == "digits":
        return _digits(transform)
    if scheme not in _READERS or not path_text:
        kinds = ", ".join(["digits", *(f"{name}:PATH" for name in _READERS)])
        raise UserError(f"data source {source!r} is unknown: use one of {kinds}")
    return _READERS[scheme](path_text, transform)


def _digits(transform: ImageTransform) -> Images:
    from sklearn.datasets import load_digits  # a second to import: only where it is used

    pixels, labels = cast(tuple[NDArray[Any], NDArray[Any]], load_digits(return_X_y=True))
    return _array("digits", pixels.astype(np.uint8).reshape(-1, 8, 8), labels, transform, white=16.0)


def _idx(path_text: str, transform: ImageTransform) -> Images:
    root = Path(path_text).expanduser()
    found: dict[str, Path] = {}
    for part in ("train-images", "train-labels"):
        candidates = sorted(root.glob(f"{part}*"))
        if candidates:
            found[part] = candidates[0]
    if "train-images" not in found:
        raise UserError(
            f"idx:{path_text} holds no train-images file: for Fashion-MNIST install Debian's dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or fetch the four files and name their folder with "
            "--set data.source=idx:FOLDER"
        )
    labels = read_idx(found["train-labels"]) if "train-labels" in found else None
    return _array(f"idx:{path_text}", read_idx(found["train-images"]), labels, transform)


def _cifar(path_text: str, transform: ImageTransform) -> Images:
    images, labels = read_cifar(Path(path_text).expanduser())
    return _array(f"cifar:{path_text}", images, labels, transform)


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
    return _array(f"npz:{path_text}", images, labels, transform)


_NOT_ARRAYS = (AttributeError, SyntaxError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise of damaged files, beside the usual."""


def _hub(path_text: str, transform: ImageTransform) -> Images:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("hub: data needs the extra `hub`: pip install 'progdist[hub]'") from error
    try:
        table: Any = load_dataset(path_text, split="train")
    except Exception as error:  # the library raises many kinds: all mean that it cannot be had
        raise UserError(f"hub:{path_text} cannot be loaded ({' '.join(str(error).split())})") from error
    image_column = next((name for name in ("image", "img", "png", "jpg") if name in table.column_names), None)
    if image_column is None:
        raise UserError(f"hub:{path_text} has columns {table.column_names}, none of them image, img, png or jpg")
    label_column = next((name for name in ("label", "labels", "fine_label") if name in table.column_names), None)
    labels = None if label_column is None else torch.tensor(table[label_column][:])
    return Images(f"hub:{path_text}", len(table), _Table(transform, table, image_column), labels)


def _array(
    name: str,
    pixels: NDArray[Any],
    labels: NDArray[Any] | None,
    transform: ImageTransform,
    *,
    white: float = 255.0,
) -> Images:
    """Images (N, H, W[, 1 or 3]), kept as they are and framed when they are read."""
    if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"{name}: labels are {labels.dtype} of shape {labels.shape}, expected whole numbers (N,)")
    known = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Images(name, len(pixels), ArrayReader(transform, pixels, white), known)


@dataclass(frozen=True)
class _Table(Reader):
    """One column of a Hugging Face data set, which reads from its own files."""

    table: Any
    column: str

    def __call__(self, index: int) -> Tensor:
        return self.transform(self.table[index][self.column])


_READERS: dict[str, Callable[[str, ImageTransform], Images]] = {
    "folder": open_folder,
    "captions": open_captions,
    "idx": _idx,
    "cifar": _cifar,
    "npz": _npz,
    "hub": _hub,
    "wds": open_webdataset,
    "parquet": open_parquet,
}
