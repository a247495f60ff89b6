"""A set of images as tensors in [-1, 1] with labels, and how a picture is framed to become one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from progdist._utils.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

Resample = Literal["area", "bilinear"]


@dataclass(frozen=True)
class ImageTransform:
    """How an image becomes a tensor: resized to size x size (None: as it is), 1 or 3 channels (None: as it is)."""

    size: int | None = None
    channels: Literal[1, 3] | None = None
    resample: Resample = "area"

    def __call__(self, image: Image.Image) -> Tensor:
        """(C, H, W) in [-1, 1]."""
        if image.mode.startswith("I"):  # 16 bits: a plain conversion would saturate
            image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
        if self.channels or image.mode not in ("L", "RGB"):
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.size and image.size != (self.size, self.size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            method = Image.Resampling.BOX if self.resample == "area" else Image.Resampling.BILINEAR
            image = image.resize((self.size, self.size), method, box=(left, top, left + side, top + side))
        return from_uint8(np.asarray(image))


def from_uint8(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W) or (H, W, C) of 0..255 -> (C, H, W) in [-1, 1]."""
    tensor = torch.from_numpy(np.array(pixels)).float() / 127.5 - 1
    return tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor.unsqueeze(0)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """(B, C, H, W) in [-1, 1], clipped, -> (B, H, W, C) of 0..255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()


class Images(Dataset[tuple[Tensor, int]]):
    """A data set of (image in [-1, 1], label) pairs.

    Args:
        name: the source it came from.
        get: index -> image (C, H, W).
        labels: int64 (N,), or None where there are none (every label is then 0).
        classes: names of the classes, in the order of the labels.

    Raises:
        UserError: no images, or labels that do not fit.
    """

    def __init__(
        self, name: str, count: int, get: Callable[[int], Tensor], labels: Tensor | None, classes: tuple[str, ...] = ()
    ) -> None:
        if count == 0:
            raise UserError(f"{name} holds no images: give a source with at least one ({' '.join(sorted(SUFFIXES))})")
        if labels is not None and len(labels) != count:
            raise UserError(f"{name} holds {count} images but {len(labels)} labels: they must be equally many")
        if labels is not None and int(labels.min()) < 0:
            raise UserError(f"{name}: label {int(labels.min())} is negative; labels count from 0")
        self.name, self.count, self.get, self.labels = name, count, get, labels
        top = 0 if labels is None else int(labels.max()) + 1
        self.classes = classes or tuple(str(label) for label in range(top))
        if len(self.classes) < top:
            raise UserError(f"{name}: label {top - 1} is out of range for {len(self.classes)} classes")
        first = get(0)
        self.shape: tuple[int, int, int] = (first.shape[0], first.shape[1], first.shape[2])

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
        return self.labels.sort().values[even][order]

    def split(self, count: int, seed: int) -> tuple["Images", "Images"]:
        """(all but `count` images, those `count`), chosen by the seed.

        Raises:
            UserError: none would be left of either.
        """
        if not 0 < count < len(self):
            raise UserError(f"{self.name} holds {len(self)} images: {count} cannot be held out, some must be left")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self._subset(order[count:].sort().values), self._subset(order[:count].sort().values)

    def _subset(self, chosen: Tensor) -> "Images":
        labels = None if self.labels is None else self.labels[chosen]
        return Images(self.name, len(chosen), _Subset(self.get, chosen), labels, self.classes)

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """`count` images (without repeats while they last) and labels, chosen by the seed; all if count >= N."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values
        pairs = [self[int(index)] for index in order]
        return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


@dataclass(frozen=True)
class _Subset:
    """Some images of a set, by their indices."""

    get: Callable[[int], Tensor]
    indices: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.get(int(self.indices[index]))
