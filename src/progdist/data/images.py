"""A set of images as tensors in [-1, 1] with labels, and how a picture is framed to become one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from progdist._utils.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

Resample = Literal["area", "bilinear"]


def crop_box(size: tuple[int, int], place: float | None) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a square crop of an image of (width, height): the shorter side is its own.

    It lies in the middle, or at a place in [0, 1) of its way along the longer side.
    """
    side = min(size)
    left, top = ((length - side) // 2 if place is None else int(place * (length - side + 1)) for length in size)
    return left, top, left + side, top + side


@dataclass(frozen=True)
class ImageTransform:
    """How an image becomes a tensor: resized to size x size (None: as it is), 1 or 3 channels (None: as it is)."""

    size: int | None = None
    channels: Literal[1, 3] | None = None
    resample: Resample = "area"

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
        """(height, width, top, left) of an image of (width, height): its own, and where its crop begins.

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


@dataclass(frozen=True)
class Reader:
    """Reads the images of a source by their index, as its transform says."""

    transform: ImageTransform

    def __call__(self, index: int, place: float | None = None) -> Tensor:
        """Image (C, H, W) in [-1, 1], cropped at a place as in `crop_box`."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image before it is framed."""
        raise NotImplementedError

    def frame(self, index: int, place: float | None = None) -> tuple[int, int, int, int]:
        """(height, width, top, left) as in `ImageTransform.frame`."""
        return self.transform.frame(self.size(index), place)


@dataclass(frozen=True)
class ArrayReader(Reader):
    """Images kept as the bytes that they are, brought to [-1, 1] and framed when they are read.

    Attributes:
        transform: how they are framed.
        pixels: (N, H, W) or (N, H, W, 1 or 3): bytes of 0..`white`, or floats in [-1, 1].
        white: the byte that stands for 1.
    """

    pixels: NDArray[Any]
    white: float = 255.0

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of all of them."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def __call__(self, index: int, place: float | None = None) -> Tensor:
        """Image (C, H, W) in [-1, 1]."""
        pixels, transform = self.pixels[index], self.transform
        is_bytes = pixels.dtype == np.uint8
        image = (
            from_uint8(pixels, self.white) if is_bytes else _channels_first(torch.from_numpy(np.array(pixels)).float())
        )
        channels, height, width = image.shape
        square = transform.size is None or (height, width) == (transform.size, transform.size)
        if square and transform.channels in (None, channels):
            return image
        framed = to_uint8(image[None])[0]
        return transform(Image.fromarray(framed[..., 0] if channels == 1 else framed), place)


MAX_CLASSES = 2**20
"""Classes that the labels of a data set may count without naming them."""


class Images(Dataset[tuple[Tensor, int]]):
    """A data set of (image in [-1, 1], label) pairs.

    Args:
        name: the source it came from.
        count: how many images.
        get: index -> image (C, H, W).
        labels: int64 (N,), or None where there are none (every label is then 0).
        classes: names of the classes, in the order of the labels.
        shape: of every image; None to open the first and see.

    Raises:
        UserError: no images, or labels that do not fit.
    """

    def __init__(
        self,
        name: str,
        count: int,
        get: Callable[[int], Tensor],
        labels: Tensor | None,
        classes: tuple[str, ...] = (),
        *,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        if count == 0:
            raise UserError(f"{name} holds no images: give a source with at least one ({' '.join(sorted(SUFFIXES))})")
        if labels is not None and len(labels) != count:
            raise UserError(f"{name} holds {count} images but {len(labels)} labels: they must be equally many")
        if labels is not None and int(labels.min()) < 0:
            raise UserError(f"{name}: label {int(labels.min())} is negative; labels count from 0")
        self.name, self.count, self.get, self.labels = name, count, get, labels
        top = 0 if labels is None else int(labels.max()) + 1
        if top > MAX_CLASSES and not classes:
            raise UserError(f"{name}: label {top - 1} is beyond {MAX_CLASSES:,} classes; labels count from 0")
        self.classes = classes or tuple(str(label) for label in range(top))
        if len(self.classes) < top:
            raise UserError(f"{name}: label {top - 1} is out of range for {len(self.classes)} classes")
        if shape is None:
            channels, height, width = get(0).shape
            shape = (channels, height, width)
        self.shape = shape

    def __len__(self) -> int:
        """The number of images."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (C, H, W) in [-1, 1] and its label."""
        image = self.get(index)
        if tuple(image.shape) != self.shape:
            raise UserError(
                f"{self.name}: image {index} is {tuple(image.shape)}, the first is {self.shape} (channels, height, "
                "width): give a size (and channels) to bring all to one shape"
            )
        return image, 0 if self.labels is None else int(self.labels[index])

    def stratified_labels(self, count: int) -> Tensor:
        """`count` labels (count,), in the data's own shares and a mixed order; 0 where there are none."""
        if self.labels is None:
            return torch.zeros(count, dtype=torch.int64)
        even = torch.arange(count) * len(self) // count
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return torch.searchsorted(self.labels.bincount().cumsum(0), even, right=True)[order]

    def reframed(self, transform: ImageTransform) -> Self:
        """The same source under another transform; nothing is searched or read again but the first image.

        Raises:
            UserError: they are no images that can be framed anew, such as latents.
        """
        if not isinstance(self.get, Reader):
            raise UserError(f"{self.name} cannot be framed anew: open the images themselves")
        return type(self)(self.name, self.count, replace(self.get, transform=transform), self.labels, self.classes)

    def split(self, count: int, seed: int) -> tuple[Self, Self]:
        """(all but `count` images, those `count`), chosen by the seed.

        Raises:
            UserError: none would be left of either.
        """
        if not 0 < count < len(self):
            raise UserError(f"{self.name} holds {len(self)} images: {count} cannot be held out, some must be left")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[count:].sort().values), self.subset(order[:count].sort().values)

    def subset(self, chosen: Tensor) -> Self:
        """The images of some indices (M,), in their order."""
        labels = None if self.labels is None else self.labels[chosen]
        return type(self)(self.name, len(chosen), _Subset(self.get, chosen), labels, self.classes, shape=self.shape)

    def chosen(self, count: int, seed: int) -> Tensor:
        """The indices of `count` images without repeats, in rising order, chosen by the seed; all if count >= N."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images (B, C, H, W) and labels (B,) of some indices (B,)."""
        pairs = [self[index] for index in indices.tolist()]
        return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """`count` images and labels, chosen by the seed as in `chosen`, all in memory."""
        return self.at(self.chosen(count, seed))


class CaptionedImages(Images):
    """A data set of (image in [-1, 1], caption's number) pairs; `classes` are the distinct captions."""


@dataclass(frozen=True)
class _Subset:
    """Some images of a set, by their indices."""

    get: Callable[[int], Tensor]
    indices: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.get(int(self.indices[index]))
