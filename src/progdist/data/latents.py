"""The latents of a set of images: encoded once, by all processes, and read from their shards.

    00000.safetensors ...           latents
    frames/00000.safetensors ...    (height, width, top, left) of each example's image and crop, if asked for

A model that is told the size of each image (Podell et al. 2023, arXiv 2307.01952, section 2.2) finds the frame of an
example by its label, in which the caption's number c of C and the example's own number i are one:

    label = c + C (1 + i)

so that a label below C is a caption alone, and what draws, shuffles and splits examples need not know of frames.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.data.images import CaptionedImages, Images, Reader
from progdist.data.shards import INDEX, TensorShards
from progdist.data.sources import Crops
from progdist.data.streams import StreamedImages

BATCH = 64
"""Images encoded at a time."""

ROWS = 4096
"""Latents in a shard: 64 MiB of 4x32x32 numbers."""


class ImageEncoder(Protocol):
    """An autoencoder, as far as encoding goes."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents on the CPU of images (N, C, H, W) in [-1, 1]."""
        ...


class FramedLatents(CaptionedImages):
    """Latents whose labels tell the caption and the example.

    Args:
        latents: with captions' numbers for labels.
        numbers: of the examples among all of the run, int64 (N,).
    """

    def __init__(self, latents: Images, numbers: Tensor) -> None:
        name, get, labels, classes = latents.name, latents.get, latents.labels, latents.classes
        super().__init__(name, len(latents), get, labels, classes, shape=latents.shape)
        self.latents, self.numbers = latents, numbers

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A latent and its label."""
        latent, caption = super().__getitem__(index)
        return latent, caption + len(self.classes) * (1 + int(self.numbers[index]))

    def subset(self, chosen: Tensor) -> "FramedLatents":
        """Some of them, which keep their numbers."""
        return FramedLatents(self.latents.subset(chosen), self.numbers[chosen])


def split_label(labels: Tensor, captions: int) -> tuple[Tensor, Tensor]:
    """(numbers of captions, numbers of examples) in labels (B,); -1 for a caption alone.

    Args:
        labels: as `FramedLatents` gives them.
        captions: how many there are.
    """
    return labels % captions, labels // captions - 1


def begin_latents(images: Images, folder: Path, *, framed: bool = False) -> int:
    """Make the folder that the latents of a set of images go into, unless it is there; one process does this.

    Args:
        images: the whole set.
        folder: of the shards.
        framed: whether their frames are asked for.

    Returns:
        How many shards are yet to be written.

    Raises:
        UserError: what is there is damaged, or of another number of images.
    """
    if isinstance(images, StreamedImages):
        raise UserError(f"{images.name} is a stream, which cannot be encoded once: give a latent model folder: or npz:")
    shards = _shards(images, folder)
    if shards.path.is_file():  # as version 0.1.0 wrote them
        _checked(images, shards)
        return 0
    if not (folder / "index.json").is_file():
        shards.write_index()
    if not shards.agrees():
        raise UserError(
            f"{folder} does not hold the latents of the {len(images)} images of {images.name}: remove it to encode them"
        )
    absent = set(shards.absent())
    if framed:
        frames = frame_shards(images, folder)
        if not (frames.path / INDEX).is_file():
            frames.write_index()
        absent |= set(frames.absent())
    return len(absent)


def encode(
    images: Images,
    autoencoder: ImageEncoder,
    folder: Path,
    process: int = 0,
    processes: int = 1,
    *,
    framed: bool = False,
) -> None:
    """Write one process's share of the shards that are absent; call `begin_latents` first.

    Args:
        images: the whole set.
        autoencoder: encodes BATCH images at a time.
        folder: of the shards.
        process: number of this process, from 0.
        processes: how many share the work.
        framed: whether their frames are asked for.
    """
    shards = _shards(images, folder)
    if shards.path.is_file():
        return
    spans, frames = shards.spans(), frame_shards(images, folder)
    frames_absent, absent = frames.absent() if framed else [], shards.absent()
    for number in range(process, len(spans), processes):
        if number in frames_absent:
            frames.write(number, [torch.tensor([_frame(images, index) for index in spans[number]])])
        if number in absent:
            batches = torch.arange(spans[number].start, spans[number].stop).split(BATCH)
            shards.write(number, (autoencoder.encode(images.at(batch)[0]) for batch in batches))


def _frame(images: Images, index: int) -> tuple[int, int, int, int]:
    """(height, width, top, left) of an example's image and crop."""
    if not isinstance(images.get, Reader | Crops):
        raise UserError(f"{images.name} does not tell the sizes of its images: open the images themselves")
    return images.get.frame(index)


def frame_shards(images: Images, folder: Path) -> TensorShards:
    """The frames (height, width, top, left) of a set of images in the folder of its latents, int64 (4,) each."""
    return TensorShards(folder / "frames", len(images), ROWS, images.name)


def open_latents(images: Images, folder: Path, *, framed: bool = False) -> Images:
    """The latents of a set of images with its labels, mapped from their shards; `framed` gives FramedLatents.

    Raises:
        UserError: a shard is absent, or damaged, or they are of another number of images.
    """
    shards = _shards(images, folder)
    if not shards.path.is_file() and (absent := shards.absent()):
        raise UserError(f"{folder} lacks {len(absent)} shards: run the same command again to encode them")
    latents = _checked(images, shards)
    return FramedLatents(latents, torch.arange(len(latents))) if framed else latents


def _checked(images: Images, shards: TensorShards) -> Images:
    try:
        return type(images)(images.name, len(images), shards.__getitem__, images.labels, images.classes)
    except UserError as error:
        raise UserError(f"{error}; {len(images)} latents are wanted: remove it to encode them anew") from error


def _shards(images: Images, folder: Path) -> TensorShards:
    """The shards; or the one file beside the folder in which version 0.1.0 kept all latents."""
    single = folder.with_name(f"{folder.name}.safetensors")
    if single.is_file():
        return TensorShards(single, len(images), len(images))
    return TensorShards(folder, len(images), ROWS, f"{images.name} {'x'.join(map(str, images.shape))}")
