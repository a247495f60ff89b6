"""A set of images as tensors in [-1, 1] with labels: how an image is read, framed and made a tensor."""

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from progdist._utils.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
Resample = Literal["area", "bilinear"]


def crop_box(size: tuple[int, int], place: float | None) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest square of (width, height), at a place in [0, 1) or in the middle."""
    side = min(size)
    left, top = ((length - side) // 2 if place is None else int(place * (length - side + 1)) for length in size)
    return left, top, left + side, top + side


@dataclass(frozen=True)
class ImageTransform:
    """How an opened image becomes a tensor; the only place where one does."""

    size: int | None = None  # height and width, after a square crop; None for the image's own
    channels: Literal[1, 3] | None = None  # 1 for grey, 3 for RGB; None for grey where the image is, and RGB elsewhere
    resample: Resample = "area"  # "area": the mean of all pixels that a new one covers; "bilinear": with antialiasing

    def __call__(self, image: Image.Image, place: float | None = None) -> Tensor:
        """(C, H, W) in [-1, 1] of a crop at a place as in `crop_box`."""
        if image.mode.startswith("I"):  # 16 bits: a plain conversion would saturate
            image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
        if self.channels or image.mode not in ("L", "RGB"):
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.size and image.size != (self.size, self.size):
            method = Image.Resampling.BOX if self.resample == "area" else Image.Resampling.BILINEAR
            image = image.resize((self.size, self.size), method, box=crop_box(image.size, place))
        return from_uint8(np.asarray(image))

    def frame(self, size: tuple[int, int], place: float | None = None) -> tuple[int, int, int, int]:
        """(height, width, top, left) of an image of (width, height): its own size, and where its crop begins.

        Top and left are in pixels of the new size (Podell et al. 2023, arXiv 2307.01952, section 2.2).
        """
        left, top, *_ = crop_box(size, place) if self.size else (0, 0)
        scale = (self.size or 0) / min(size)
        return size[1], size[0], round(scale * top), round(scale * left)


def from_uint8(pixels: NDArray[np.uint8], white: float = 255.0) -> Tensor:
    """(H, W) or (H, W, C) of 0..white -> (C, H, W) in [-1, 1]."""
    return _channels_first(torch.from_numpy(np.array(pixels)).float() / (white / 2) - 1)


def _channels_first(pixels: Tensor) -> Tensor:
    """(H, W) or (H, W, C) -> (C, H, W)."""
    return pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels.unsqueeze(0)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """(B, C, H, W) in [-1, 1], clipped, -> (B, H, W, C) of 0..255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()


UNREADABLE = (
    *(UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow raises of damaged files."""


@contextmanager
def readable(image: str) -> Iterator[None]:
    """The context in which an image of that name is decoded: a damaged one raises a UserError."""
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{image} cannot be read as an image ({reason}): fix or remove it") from error


@contextmanager
def open_image(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An image file or its bytes, opened with Pillow; errors as in `readable`."""
    bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
    with readable(name), bombs, Image.open(file) as image:
        yield image


@dataclass(frozen=True)
class Reader:
    """Reads the images of a source by their index, as its transform says."""

    transform: ImageTransform

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """The context in which an image is open; errors as in `readable`."""
        raise NotImplementedError

    def __call__(self, index: int, place: float | None = None) -> Tensor:
        """Image (C, H, W) in [-1, 1], cropped at a place as in `crop_box`."""
        with self.open(index) as image:
            return self.transform(image, place)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image before it is framed; of a file only the header is read."""
        with self.open(index) as image:
            return image.size

    def frame(self, index: int, place: float | None = None) -> tuple[int, int, int, int]:
        """(height, width, top, left) as in `ImageTransform.frame`."""
        return self.transform.frame(self.size(index), place)


@dataclass(frozen=True)
class ArrayReader(Reader):
    """Images kept as the bytes that they are, brought to [-1, 1] and framed when they are read."""

    pixels: NDArray[Any]
    white: float = 255.0

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of all of them."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """An image as Pillow has it."""
        pixels = to_uint8(self._tensor(index)[None])[0]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def __call__(self, index: int, place: float | None = None) -> Tensor:
        """Image (C, H, W) in [-1, 1]; one that the transform leaves as it is keeps its precision."""
        image, size = self._tensor(index), self.transform.size
        framed = size is not None and image.shape[1:] != (size, size)
        return super().__call__(index, place) if framed or self.transform.channels not in (None, len(image)) else image

    def _tensor(self, index: int) -> Tensor:
        pixels = self.pixels[index]
        if pixels.dtype == np.uint8:
            return from_uint8(pixels, self.white)
        return _channels_first(torch.from_numpy(np.array(pixels)).float())


MAX_CLASSES = 2**20  # classes that the labels of a data set may count without naming them


def split_indices(total: int, count: int, seed: int, holds: str) -> tuple[Tensor, Tensor]:
    """The indices (total - count,) and (count,) of two parts, rising; `holds` begins the UserError for an empty one."""
    if not 0 < count < total:
        raise UserError(f"{holds}: {count} cannot be held out, some must be left")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


class Images(Dataset[tuple[Tensor, int]]):
    """A data set of (image in [-1, 1], label) pairs.

    Raises:
        UserError: no images, or labels that do not fit.
    """

    def __init__(
        self,
        name: str,  # the source it came from
        count: int,  # how many images
        get: Callable[[int], Tensor],  # index -> image (C, H, W)
        labels: Tensor | None,  # int64 (N,), or None where there are none (every label is then 0)
        classes: tuple[str, ...] = (),  # names of the classes, in the order of the labels
        *,
        shape: tuple[int, ...] | None = None,  # of every image; None to open the first and see
    ) -> None:
        if count == 0:
            raise UserError(f"{name} holds no images: give a source with at least one ({' '.join(sorted(SUFFIXES))})")
        labelled = labels is not None
        if labelled and len(labels) != count:
            raise UserError(f"{name} holds {count} images but {len(labels)} labels: they must be equally many")
        if labelled and int(labels.min()) < 0:
            raise UserError(f"{name}: label {int(labels.min())} is negative; labels count from 0")
        top = int(labels.max()) + 1 if labelled else 0
        if top > MAX_CLASSES and not classes:
            raise UserError(f"{name}: label {top - 1} is beyond {MAX_CLASSES:,} classes; labels count from 0")
        self.name, self.count, self.get, self.labels = name, count, get, labels
        self.classes = classes or tuple(str(label) for label in range(top))
        if len(self.classes) < top:
            raise UserError(f"{name}: label {top - 1} is out of range for {len(self.classes)} classes")
        channels, height, width = get(0).shape if shape is None else shape
        self.shape = channels, height, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (C, H, W) in [-1, 1] and its label."""
        return self.checked(self.get(index), f"image {index}"), 0 if self.labels is None else int(self.labels[index])

    def checked(self, image: Tensor, name: str) -> Tensor:
        """The image itself; a UserError if it has another shape than the first."""
        if tuple(image.shape) != self.shape:
            raise UserError(
                f"{self.name}: {name} is {tuple(image.shape)}, the first is {self.shape} (channels, height, width): "
                "give a size (and channels) to bring all to one shape"
            )
        return image

    def stratified_labels(self, count: int) -> Tensor:
        """`count` labels (count,), in the data's own shares and a mixed order; 0 where there are none."""
        if self.labels is None:
            return torch.zeros(count, dtype=torch.int64)
        even = torch.arange(count) * len(self) // count
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return torch.searchsorted(self.labels.bincount().cumsum(0), even, right=True)[order]

    def reframed(self, transform: ImageTransform) -> Self:
        """The same source under another transform; nothing is searched or read again but the first image."""
        if not isinstance(self.get, Reader):
            raise UserError(f"{self.name} cannot be framed anew: open the images themselves")
        return type(self)(self.name, self.count, replace(self.get, transform=transform), self.labels, self.classes)

    def split(self, count: int, seed: int) -> tuple[Self, Self]:
        """(all but `count` images, those `count`), chosen by the seed; neither may be empty."""
        most, held_out = split_indices(len(self), count, seed, f"{self.name} holds {len(self)} images")
        return self.subset(most), self.subset(held_out)

    def subset(self, chosen: Tensor) -> Self:
        """The images of some indices (M,), in their order."""
        labels = None if self.labels is None else self.labels[chosen]
        return type(self)(self.name, len(chosen), Subset(self.get, chosen), labels, self.classes, shape=self.shape)

    def chosen(self, count: int, seed: int) -> Tensor:
        """The indices of `count` images without repeats, in rising order, chosen by the seed; all if count >= N."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images (B, C, H, W) and labels (B,) of some indices (B,)."""
        images = torch.stack([self[index][0] for index in indices.tolist()])
        return images, torch.zeros_like(indices) if self.labels is None else self.labels[indices]

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """`count` images and labels, chosen by the seed as in `chosen`, all in memory."""
        return self.at(self.chosen(count, seed))


class CaptionedImages(Images):
    """A data set of (image in [-1, 1], caption's number) pairs; `classes` are the distinct captions."""


def captioned(name: str, get: Callable[[int], Tensor], captions: Sequence[str]) -> CaptionedImages:
    """Images with the caption of each; errors as of `Images`."""
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([numbers[caption] for caption in captions]) if captions else None
    return CaptionedImages(name, len(captions), get, labels, tuple(numbers))


@dataclass(frozen=True)
class Subset:
    """Some rows of a set, by their indices in it (M,)."""

    get: Callable[[int], Tensor]
    indices: Tensor

    def __call__(self, index: int) -> Tensor:
        """Row `index` of these."""
        return self.get(int(self.indices[index]))
