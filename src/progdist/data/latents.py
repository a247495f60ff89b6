"""The latents of a set of images: encoded once, kept in one file."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, read_tensors
from progdist.data.images import Images

BATCH = 64
"""Images encoded at a time."""


class Encoder(Protocol):
    """An autoencoder, as far as encoding goes."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents on the CPU of images (N, C, H, W) in [-1, 1]."""
        ...


def encoded(images: Images, autoencoder: Encoder, cache: Path, notify: Callable[[str], None]) -> Images:
    """The latents of a set of images, with its labels; read from the cache, or made and put there.

    Raises:
        UserError: the cache is damaged, or of another number of images.
    """
    if not cache.is_file():
        notify(f"{images.name}: {len(images)} images are encoded once")
        every = (torch.stack([images[i][0] for i in part.tolist()]) for part in torch.arange(len(images)).split(BATCH))
        latents = torch.cat([autoencoder.encode(part) for part in every])
        atomic_write(cache, safetensors.torch.save({"latents": latents}))
    latents = read_tensors(cache).get("latents", torch.empty(0))
    if len(latents) != len(images):
        raise UserError(f"{cache} holds {len(latents)} latents of {len(images)} images: remove it to encode them anew")
    return Images(images.name, len(images), latents.__getitem__, images.labels, images.classes)
