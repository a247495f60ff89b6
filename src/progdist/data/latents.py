"""The latents of a set of images: encoded once, by all processes, and read from shards.

    00000.safetensors ...           latents
    frames/00000.safetensors ...    (height, width, top, left) of each example's image and crop, if requested

A model that takes the size of each image (Podell et al. 2023, arXiv 2307.01952, section 2.2) gets an example's frame as
the condition `frame`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from progdist._utils.digest import digest
from progdist._utils.errors import UserError
from progdist.data.images import CaptionedImages, Images, Reader, Subset
from progdist.data.samples import Samples
from progdist.data.shards import TensorShards
from progdist.data.sources import Crops
from progdist.data.streams import StreamedImages

BATCH = 64  # images encoded at a time
ROWS = 4096  # latents in a shard: 64 MiB of 4x32x32 numbers


class ImageEncoder(Protocol):
    """The encoding part of an autoencoder."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents, on the CPU, of images (N, C, H, W) in [-1, 1]."""
        ...


class FramedLatents(CaptionedImages):
    """Latents whose conditions are the caption's number and the frame: (height, width, top, left), int64 (4,)."""

    def __init__(self, latents: Images, frames: Callable[[int], Tensor]) -> None:
        name, get, labels, classes = latents.name, latents.get, latents.labels, latents.classes
        super().__init__(name, len(latents), get, labels, classes, shape=latents.shape)
        self.latents, self.frames = latents, frames

    def __getitem__(self, index: int) -> tuple[Tensor, Mapping[str, Tensor | int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A latent, and its conditions `labels` and `frame`."""
        latent, caption = super().__getitem__(index)
        return latent, {"labels": caption, "frame": self.frames(index)}

    def subset(self, chosen: Tensor) -> "FramedLatents":
        """The latents at these indices (M,) with their frames."""
        return FramedLatents(self.latents.subset(chosen), Subset(self.frames, chosen))


@dataclass(frozen=True)
class LatentFolder:
    """The latents of a set of images, in a folder."""

    images: Images  # the whole set
    folder: Path  # of the shards
    framed: bool = False  # whether to keep the images' frames, too
    encoder: str = ""  # identifies the autoencoder

    @cached_property
    def latents(self) -> TensorShards:
        """The shards of the latents."""
        return TensorShards(self.folder, len(self.images), ROWS)

    @cached_property
    def frames(self) -> TensorShards:
        """The shards of the frames, int64 (4,) each."""
        return TensorShards(self.folder / "frames", len(self.images), ROWS)

    def prepare(self, notify: Callable[[str], None] = lambda text: None) -> int:
        """Write the index of the shards unless it exists, in one process; return how many shards are missing.

        Latents of other images or another autoencoder are removed, and `notify` is called with a line.

        Raises:
            UserError: the images are a stream, or the folder is damaged.
        """
        images = self.images
        if isinstance(images, StreamedImages):
            raise UserError(
                f"{images.name} is a stream, which cannot be encoded once: use folder: or npz: for a latent model"
            )
        absent = set[int]()
        for shards in (self.latents, self.frames) if self.framed else (self.latents,):
            source = digest(images.fingerprint, self.encoder)
            if TensorShards(shards.path, len(images), ROWS, source).begin() and shards is self.latents:
                notify(
                    f"{self.folder} held latents of other images or another autoencoder: encoding {images.name} again"
                )
            absent.update(shards.absent())
        return len(absent)

    def encode(self, autoencoder: ImageEncoder, process: int = 0, processes: int = 1) -> None:
        """Write one process's share of the missing shards, encoding BATCH images at a time."""
        frames_absent, absent = self.frames.absent() if self.framed else [], self.latents.absent()
        for number, span in list(enumerate(self.latents.spans()))[process::processes]:
            if number in frames_absent:
                self.frames.write(number, [torch.tensor([self._frame(index) for index in span])])
            if number in absent:
                batches = torch.arange(span.start, span.stop).split(BATCH)
                self.latents.write(number, (autoencoder.encode(self.images.at(batch)[0]) for batch in batches))

    def _frame(self, index: int) -> tuple[int, int, int, int]:
        if not isinstance(self.images.get, Reader | Crops):
            raise UserError(f"{self.images.name} does not give the sizes of its images: open the images themselves")
        return self.images.get.frame(index)

    def open(self) -> Images | Samples:
        """The latents with the images' labels, mapped from their shards; FramedLatents if frames are kept.

        Latents with another rank than images, e.g. tokens, are Samples.
        """
        images = self.images
        if absent := self.latents.absent():
            raise UserError(f"{self.folder} lacks {len(absent)} shards: run the same command again to encode them")
        if len(shape := tuple(self.latents[0].shape)) != 3:
            labels = torch.zeros(len(images), dtype=torch.int64) if images.labels is None else images.labels
            return Samples(self.latents.__getitem__, shape, labels)
        latents = type(images)(images.name, len(images), self.latents.__getitem__, images.labels, images.classes)
        return FramedLatents(latents, self.frames.__getitem__) if self.framed else latents
