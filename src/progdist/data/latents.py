"""The latents of a set of images: encoded once, by all processes, and read from their shards."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.data.images import Images
from progdist.data.shards import TensorShards
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


def begin_latents(images: Images, folder: Path) -> int:
    """Make the folder that the latents of a set of images go into, unless it is there; one process does this.

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
    return len(shards.absent())


def encode(images: Images, autoencoder: ImageEncoder, folder: Path, process: int = 0, processes: int = 1) -> None:
    """Write one process's share of the shards that are absent; call `begin_latents` first.

    Args:
        images: the whole set.
        autoencoder: encodes BATCH images at a time.
        folder: of the shards.
        process: number of this process, from 0.
        processes: how many share the work.
    """
    shards = _shards(images, folder)
    if shards.path.is_file():
        return
    spans = shards.spans()
    for number in range(process, len(spans), processes):
        if (folder / f"{number:05d}.safetensors").is_file():
            continue
        batches = torch.arange(spans[number].start, spans[number].stop).split(BATCH)
        shards.write(number, (autoencoder.encode(images.at(batch)[0]) for batch in batches))


def open_latents(images: Images, folder: Path) -> Images:
    """The latents of a set of images with its labels, mapped from their shards.

    Raises:
        UserError: a shard is absent, or damaged, or they are of another number of images.
    """
    shards = _shards(images, folder)
    if not shards.path.is_file() and (absent := shards.absent()):
        raise UserError(f"{folder} lacks {len(absent)} shards: run the same command again to encode them")
    return _checked(images, shards)


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
