"""Images in, as tensors in [-1, 1] with labels.

A source is named in one word:

    digits          scikit-learn's 1,797 handwritten digits, 8x8, ten classes (embedded, nothing to fetch)
    folder:PATH     image files; class folders give labels, a flat folder gives none; hidden files are passed over
    idx:PATH        a folder with MNIST-format files, gzipped or not
    cifar:PATH      the folder of CIFAR-10's binary or python version
    npz:PATH        arrays `images` (N, H, W) or (N, H, W, C), uint8 or float in [-1, 1], and `labels` (N,) if any
    hub:NAME        a Hugging Face data set (extra `hub`)

With a `size`, an image is centre-cropped to a square and resampled to size x size: by `area` (each new pixel is the
mean of the old ones it covers) or `bilinear` (with antialiasing). Without one, all images must have one size.
"""

import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.data.formats import read_cifar, read_idx, read_npz
from progdist.data.images import SUFFIXES, Images, ImageTransform, to_uint8


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
    levels = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1
    if transform.size in (None, 8) and transform.channels in (None, 1):
        return _in_memory("digits", levels, labels)
    return _pixels("digits", to_uint8(levels), labels, transform)


_UNREADABLE = (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, struct.error)
"""What Pillow raises of damaged files."""


@dataclass(frozen=True)
class _Files:
    """Image files, opened when they are asked for."""

    paths: list[Path]
    transform: ImageTransform

    def __call__(self, index: int) -> Tensor:
        try:
            bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
            with bombs, Image.open(self.paths[index]) as image:
                return self.transform(image)
        except (*_UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UserError(f"{self.paths[index]} cannot be read as an image ({error}): mend or remove it") from error


def _folder(path_text: str, transform: ImageTransform) -> Images:
    root = Path(path_text).expanduser()
    if not root.is_dir():
        raise UserError(f"folder:{path_text} is no folder: give the path of a folder of images")
    paths = sorted(_image_files(root, set()))
    classes = [path.relative_to(root).parts[0] for path in paths if path.parent != root]
    names, flat = tuple(sorted(set(classes))), len(paths) - len(classes)
    if names and flat:
        raise UserError(f"folder:{path_text} holds {flat} images beside class folders: move them into class folders")
    numbers = {name: number for number, name in enumerate(names)}
    labels = torch.tensor([numbers[name] for name in classes]) if names else None
    return Images(f"folder:{path_text}", len(paths), _Files(paths, transform), labels, names)


def _image_files(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """The image files in a folder and below, behind symbolic links, too; nothing whose name begins with a dot."""
    real = folder.resolve()
    if real in seen:  # a link to a folder that holds it
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if entry.is_dir():
                yield from _image_files(path, seen | {real})
            elif path.suffix.lower() in SUFFIXES:
                yield path


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
    return _pixels(f"idx:{path_text}", read_idx(found["train-images"]), labels, transform)


def _cifar(path_text: str, transform: ImageTransform) -> Images:
    images, labels = read_cifar(Path(path_text).expanduser())
    return _pixels(f"cifar:{path_text}", images, labels, transform)


def _npz(path_text: str, transform: ImageTransform) -> Images:
    try:
        images, labels = read_npz(Path(path_text).expanduser())
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, *_NOT_ARRAYS) as error:
        raise UserError(
            f"npz:{path_text} cannot be read ({str(error)[:200]}): expected arrays `images` and `labels`"
        ) from error
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise UserError(f"npz:{path_text}: images are {images.shape}, expected (N, H, W) or (N, H, W, 1 or 3)")
    if images.dtype == np.uint8:
        return _pixels(f"npz:{path_text}", images, labels, transform)
    if not np.issubdtype(images.dtype, np.floating) or not (np.abs(images) <= 1).all():
        raise UserError(f"npz:{path_text}: images are {images.dtype}, expected uint8, or floats in [-1, 1]")
    tensor = torch.from_numpy(images.astype(np.float32))
    tensor = tensor.movedim(-1, 1) if tensor.ndim == 4 else tensor.unsqueeze(1)
    if transform.size in (None, tensor.shape[-1]) and transform.channels in (None, tensor.shape[1]):
        return _in_memory(f"npz:{path_text}", tensor, labels)
    return _pixels(f"npz:{path_text}", to_uint8(tensor), labels, transform)


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
    return Images(f"hub:{path_text}", len(table), lambda index: transform(table[index][image_column]), labels)


def _pixels(name: str, pixels: NDArray[np.uint8], labels: NDArray[Any] | None, transform: ImageTransform) -> Images:
    """An array of bytes (N, H, W[, 1 or 3]), framed once and kept in memory."""
    images = [transform(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)) for image in pixels]
    return _in_memory(name, torch.stack(images) if images else torch.empty(0, 1, 1, 1), labels)


def _in_memory(name: str, images: Tensor, labels: NDArray[Any] | None) -> Images:
    if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"{name}: labels are {labels.dtype} of shape {labels.shape}, expected whole numbers (N,)")
    known = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Images(name, len(images), images.__getitem__, known)


_READERS: dict[str, Callable[[str, ImageTransform], Images]] = {
    "folder": _folder,
    "idx": _idx,
    "cifar": _cifar,
    "npz": _npz,
    "hub": _hub,
}
