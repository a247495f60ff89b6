"""A set of images as tensors in [-1, 1] with labels: how an image is read, framed and converted."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from progdist._utils.digest import digest
from progdist._utils.errors import UserError
from progdist._utils.words import counted, listed
from progdist.data.labels import MAX_CLASSES, stratified
from progdist.data.pictures import as_seen, background_colour, is_grey, upright_size
from progdist.data.survey import LOOKED, TOLD, Survey, survey, told, whites

Resample = Literal["area", "bilinear"]


def crop_box(size: tuple[int, int], place: float | None) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest square in (width, height), at a place in [0, 1) or in the middle."""
    side = min(size)
    left, top = ((length - side) // 2 if place is None else int(place * (length - side + 1)) for length in size)
    return left, top, left + side, top + side


@dataclass(frozen=True)
class ImageTransform:
    """How an opened image becomes a tensor; the only place where this happens."""

    size: int | None = None  # height and width, after a square crop; None for the image's own size
    channels: Literal[1, 3] | None = None  # 1 for grey, 3 for RGB; None for grey if all images are grey, else RGB
    resample: Resample = "area"  # "area": the mean of all covered pixels; "bilinear": with antialiasing
    background: str | None = None  # the colour behind transparent pixels; None for white
    whites: Mapping[str, float] = field(default_factory=dict)  # for images of more than 8 bits, as in `as_seen`

    def __post_init__(self) -> None:
        size, channels, resample = self.size, self.channels, self.resample
        if size is not None and (not isinstance(size, Integral) or isinstance(size, bool) or size < 1):
            raise UserError(f"size is {size!r}, expected a whole number of pixels, at least 1, or None")
        if channels is not None and (isinstance(channels, bool) or channels not in (1, 3)):
            raise UserError(f"channels is {channels!r}, expected 1 (grey), 3 (RGB) or None")
        if resample not in get_args(Resample):
            raise UserError(f"resample is {resample!r}, expected {' or '.join(get_args(Resample))}")
        if size is not None:
            object.__setattr__(self, "size", int(size))  # also numpy's integers
        _ = self.colour

    @cached_property
    def colour(self) -> tuple[int, int, int]:
        """The background's red, green and blue."""
        return background_colour(self.background)

    def fitted(self, found: Survey, deep: Mapping[str, float]) -> "ImageTransform":
        """The transform for a set with these findings: its channels are chosen if they are open."""
        grey = found.grey == found.looked and (len(set(self.colour)) == 1 or not found.transparent)
        return replace(self, channels=self.channels or (1 if grey else 3), whites=deep)

    def __call__(self, image: Image.Image, place: float | None = None) -> Tensor:
        """Convert a crop, placed as in `crop_box`, to (C, H, W) in [-1, 1]."""
        image = as_seen(image, self.colour, self.whites)
        if self.channels:
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.size and image.size != (self.size, self.size):
            method = Image.Resampling.BOX if self.resample == "area" else Image.Resampling.BILINEAR
            image = image.resize((self.size, self.size), method, box=crop_box(image.size, place))
        return from_uint8(np.asarray(image))

    def frame(self, size: tuple[int, int], place: float | None = None) -> tuple[int, int, int, int]:
        """(height, width, top, left) of an image of (width, height): its own size, and the start of its crop.

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
    """Reads the images of a source by index, with a transform."""

    transform: ImageTransform
    found: tuple[Survey, Mapping[str, float]] | None = field(default=None, kw_only=True)  # the kinds of images found

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """The context in which an image is open; raises as `readable` does."""
        raise NotImplementedError

    def surveyed(self, count: int) -> Self:
        """The reader of a source of `count` images, with the kinds of images in it known."""
        if self.found:
            return self
        found = survey(self.open, count, LOOKED)
        return replace(self, found=(found, whites(self.open, found)))

    @cached_property
    def _fitted(self) -> ImageTransform:
        return self.transform.fitted(*self.found) if self.found else self.transform

    def __call__(self, index: int, place: float | None = None) -> Tensor:
        """Image (C, H, W) in [-1, 1], with a crop placed as in `crop_box`."""
        with self.open(index) as image:
            if self._fitted.channels == 1 != self.transform.channels and not is_grey(image):
                raise UserError(
                    f"image {index} is in colour, but those examined are grey: set data.channels to 3, or channels=3 "
                    "from Python"
                )
            return self._fitted(image, place)

    def fingerprint(self) -> str:
        """Identifies these images with this framing, for caches."""
        return digest(type(self).__name__, self.transform, self._source())

    def _source(self) -> str:
        """Identifies the source of the images, whatever the transform."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an upright image before framing; of a file only the header is read."""
        with self.open(index) as image:
            return upright_size(image)

    def frame(self, index: int, place: float | None = None) -> tuple[int, int, int, int]:
        """(height, width, top, left) as in `ImageTransform.frame`."""
        return self.transform.frame(self.size(index), place)

    def remarks(self, count: int) -> list[str]:
        """A line about everything that is converted or skipped in a source of `count` images."""
        found = self.found[0] if self.found and count <= LOOKED else survey(self.open, count, TOLD)
        deep = self._fitted.whites
        return told(found, self.transform.background or "white", deep, count, mixed=self.transform.channels is None)


@dataclass(frozen=True)
class ArrayReader(Reader):
    """Images kept as their bytes; they are scaled to [-1, 1] and framed when read."""

    pixels: NDArray[Any]
    white: float = 255.0

    def surveyed(self, count: int) -> Self:
        """Itself: an array holds one kind of image."""
        return self

    def remarks(self, count: int) -> list[str]:
        """Empty: nothing is converted."""
        return []

    def _source(self) -> str:
        return digest(self.white, self.pixels)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of every image."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """An image as Pillow's."""
        pixels = to_uint8(self._tensor(index)[None])[0]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def __call__(self, index: int, place: float | None = None) -> Tensor:
        """Image (C, H, W) in [-1, 1]; if the transform does not change it, it keeps its precision."""
        image, size = self._tensor(index), self.transform.size
        framed = size is not None and image.shape[1:] != (size, size)
        return super().__call__(index, place) if framed or self.transform.channels not in (None, len(image)) else image

    def _tensor(self, index: int) -> Tensor:
        pixels = self.pixels[index]
        if pixels.dtype == np.uint8:
            return from_uint8(pixels, self.white)
        return _channels_first(torch.from_numpy(np.array(pixels)).float())


def split_indices(total: int, count: int, seed: int, holds: str) -> tuple[Tensor, Tensor]:
    """Sorted indices (total - count,) and (count,) of two parts; `holds` starts the UserError for an empty one."""
    if not 0 < count < total:
        raise UserError(f"{holds}: cannot hold out {count}, since both parts need at least one")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


class Images(Dataset[tuple[Tensor, int]]):
    """A data set of (image in [-1, 1], label) pairs.

    Raises:
        UserError: there are no images, or the labels do not fit.
    """

    def __init__(
        self,
        name: str,  # the source it came from
        count: int,  # how many images
        get: Callable[[int], Tensor],  # index -> image (C, H, W)
        labels: Tensor | None,  # int64 (N,), or None if there are none (every label is then 0)
        classes: tuple[str, ...] = (),  # names of the classes, in the order of the labels
        *,
        shape: tuple[int, ...] | None = None,  # of every image; None to read it from the first
        notes: Sequence[str] = (),  # lines about images that were skipped or converted
    ) -> None:
        if count == 0:
            raise UserError(f"{name} holds no images: give a source with at least one that Pillow reads, e.g. a .png")
        labelled = labels is not None
        if labelled and len(labels) != count:
            held = f"{counted(count, 'image')} but {counted(len(labels), 'label')}"
            raise UserError(f"{name} has {held}, expected as many labels as images")
        if labelled and int(labels.min()) < 0:
            raise UserError(f"{name}: label {int(labels.min())} is negative, but labels count from 0: renumber them")
        top = int(labels.max()) + 1 if labelled else 0
        if top > MAX_CLASSES and not classes:
            raise UserError(f"{name}: label {top - 1} is beyond {MAX_CLASSES:,} classes: number the labels from 0")
        get = get.surveyed(count) if isinstance(get, Reader) else get
        self.name, self.count, self.get, self.labels, self.notes = name, count, get, labels, tuple(notes)
        self.classes = classes or tuple(str(label) for label in range(top))
        if len(self.classes) < top:
            raise UserError(
                f"{name}: label {top - 1} is out of range for {counted(len(self.classes), 'class')}: name all"
            )
        if labelled and not classes and (empty := (labels.bincount() == 0).nonzero().flatten().tolist()):
            self.notes += (f"{name}: labels are the numbers 0 to {top - 1}, without images of {listed(empty)}",)
        channels, height, width = get(0).shape if shape is None else shape
        self.shape = channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """Identifies these images with this framing, by their files or contents; labels do not count.

        Caches of results computed from images store it.
        """
        known = getattr(self.get, "fingerprint", None)
        contents = known() if known else digest(*(self.get(index) for index in range(len(self))))
        return digest(contents, len(self), tuple(self.shape))

    def identity(self) -> dict[str, str | int]:
        """Identifies the whole data set in a file: its images and its labels, separately."""
        labels = digest(self.classes, *([] if self.labels is None else [self.labels]))
        return {"source": self.name, "images": len(self), "fingerprint": self.fingerprint, "labels": labels}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (C, H, W) in [-1, 1] and its label."""
        return self.checked(self.get(index), f"image {index}"), 0 if self.labels is None else int(self.labels[index])

    def checked(self, image: Tensor, name: str) -> Tensor:
        """Return the image. Raise a UserError if its shape differs from the first."""
        if tuple(image.shape) != self.shape:
            raise UserError(
                f"{self.name}: {name} is {tuple(image.shape)}, the first is {self.shape} (channels, height, width): "
                "set a size (data.size, or size= from Python), and channels if those differ"
            )
        return image

    def stratified_labels(self, count: int) -> Tensor:
        """`count` labels (count,), in the data's proportions and a mixed order; 0 if there are none."""
        if self.labels is None:
            return torch.zeros(count, dtype=torch.int64)
        return stratified(self.labels.bincount(), count)

    def relabelled(self, labels: Tensor, names: tuple[str, ...]) -> Self:
        """The same images with the labels of a model's classes: (classes,) for each label here, and their names."""
        other = copy.copy(self)
        other.labels, other.classes = None if self.labels is None else labels[self.labels], names
        return other

    def remarks(self) -> list[str]:
        """A line about everything that is converted or skipped when the source is read."""
        lines = getattr(self.get, "remarks", lambda count: [])(self.count)
        return [*self.notes, *(f"{self.name}: {line}" for line in lines)]

    def reframed(self, transform: ImageTransform) -> Self:
        """The same source under another transform; only the first image is read again."""
        if not isinstance(self.get, Reader):
            raise UserError(f"{self.name} cannot be reframed: open the images themselves")
        get = replace(self.get, transform=transform)
        return type(self)(self.name, self.count, get, self.labels, self.classes, notes=self.notes)

    @property
    def may_differ(self) -> bool:
        """Whether images may differ in size or channels, and can be brought to one shape."""
        return isinstance(self.get, Reader) and not isinstance(self.get, ArrayReader)

    @property
    def surveyed(self) -> Survey:
        """What kinds of images there are, as those looked at say; all alike where they are in arrays."""
        found = self.get.found if isinstance(self.get, Reader) else None
        if found:
            return found[0]
        size = self.get.size(0) if isinstance(self.get, Reader) else (self.shape[2], self.shape[1])
        return Survey(looked=len(self), grey=len(self) * (self.shape[0] == 1), sizes=Counter({size: len(self)}))

    def resized(self, size: int, channels: Literal[1, 3]) -> Self:
        """The same source, resized to size x size pixels with this many channels."""
        transform = self.get.transform if isinstance(self.get, Reader) else ImageTransform()
        return self.reframed(replace(transform, size=size, channels=channels))

    def split(self, count: int, seed: int) -> tuple[Self, Self]:
        """(all but `count` images, those `count`), chosen by the seed; neither may be empty."""
        most, held_out = split_indices(len(self), count, seed, f"{self.name} holds {counted(len(self), 'image')}")
        return self.subset(most), self.subset(held_out)

    def subset(self, chosen: Tensor) -> Self:
        """The images at these indices (M,), in this order."""
        labels = None if self.labels is None else self.labels[chosen]
        return type(self)(self.name, len(chosen), Subset(self.get, chosen), labels, self.classes, shape=self.shape)

    def chosen(self, count: int, seed: int) -> Tensor:
        """The sorted indices of `count` images without repeats, chosen by the seed; all if count >= N."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images (B, C, H, W) and labels (B,) at these indices (B,)."""
        at_once = getattr(self.get, "rows", None)
        images = at_once(indices.tolist()) if at_once else torch.stack([self[index][0] for index in indices.tolist()])
        return images, torch.zeros_like(indices) if self.labels is None else self.labels[indices]

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """`count` images and labels, chosen by the seed as in `chosen`, all in memory."""
        return self.at(self.chosen(count, seed))


class CaptionedImages(Images):
    """A data set of (image in [-1, 1], caption's number) pairs; `classes` are the distinct captions."""


def captioned(
    name: str, get: Callable[[int], Tensor], captions: Sequence[str], notes: Sequence[str] = ()
) -> CaptionedImages:
    """Images with their captions; raises as `Images` does."""
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([numbers[caption] for caption in captions]) if captions else None
    return CaptionedImages(name, len(captions), get, labels, tuple(numbers), notes=notes)


@dataclass(frozen=True)
class Subset:
    """Some rows of a set, by their indices (M,)."""

    get: Callable[[int], Tensor]
    indices: Tensor

    def fingerprint(self) -> str:
        """As in `Reader`."""
        known = getattr(self.get, "fingerprint", None)
        return digest(known(), self.indices) if known else digest(*(self(row) for row in range(len(self.indices))))

    def __call__(self, index: int) -> Tensor:
        """Row `index` of the subset."""
        return self.get(int(self.indices[index]))
