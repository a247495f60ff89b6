r"""How a watched pipeline decodes: from latents z to its autoencoder's latents, and from an image back to z.

    autoencoder's latents = scale z[place] + shift          image = D(scale z[place] + shift)
    z[place] = (E(image) - shift) / scale                   E the encoder's mean

`place` rearranges the numbers of z (patches, or frames before channels), and scale and shift are one number each. They
are observed while the pipeline decodes z = 0, z = 1 and z = 0, 1, 2, ..., and is stopped as it calls its autoencoder.
Pipelines that decode otherwise (sounds, several calls, noise) run to their end, and cannot encode.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.models.learning import difference

DIGITS = 4096  # the base in which places are passed: float32 holds these digits after any scale
AGREES = 1e-5  # the largest relative difference accepted in checks
PICTURES = 1e-4  # the same for images


@dataclass(frozen=True)
class Decoding:
    """What a pipeline passes to its autoencoder for latents z (B, ...).

    Args:
        place: index of each number in one example of z, int64, in the shape of the autoencoder's latents; None for z's
            order.
        scale: a number for each, in a shape that broadcasts.
        shift: the same.
        shape: the shape of one example of the autoencoder's latents.
    """

    place: Tensor | None
    scale: Tensor
    shift: Tensor
    shape: tuple[int, ...]

    def __call__(self, z: Tensor) -> Tensor:
        """The autoencoder's latents for z (B, ...)."""
        flat = z.flatten(1) if self.place is None else z.flatten(1)[:, self.place.flatten().to(z.device)]
        return flat.unflatten(1, self.shape) * self.scale.to(z) + self.shift.to(z)

    def inverse(self, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
        """z (B, *shape) for the autoencoder's latents (B, ...)."""
        flat = ((latents - self.shift.to(latents)) / self.scale.to(latents)).flatten(1)
        if self.place is not None:
            flat = flat[:, self.place.flatten().argsort().to(latents.device)]
        return flat.unflatten(1, shape)


def learn_decoding(given: Callable[[Tensor], Tensor | None], shape: tuple[int, ...]) -> Decoding | None:
    """Learn how a pipeline decodes z (B, *shape), from `given`, which returns what its autoencoder is called with.

    Return None if that is unknown, or not a rearrangement of z with a scale and a shift.
    """
    count = torch.Size(shape).numel()
    numbers = torch.arange(count, dtype=torch.float32).view(1, *shape)
    probes = (torch.zeros(1, *shape), torch.ones(1, *shape), numbers % DIGITS, numbers // DIGITS)
    seen = [given(probe) for probe in probes]
    if any(each is None or each.numel() != count for each in seen):
        return None
    zeros, ones, low, high = (cast(Tensor, each).float().cpu() for each in seen)
    shift, scale = zeros[0], (ones - zeros)[0]
    if not bool((scale != 0).all()):
        return None
    digits = [((each[0] - shift) / scale).round().long() for each in (low, high)]
    place = (digits[0] + DIGITS * digits[1]).contiguous()
    in_order = torch.arange(count)
    if not torch.equal(place.flatten().sort().values, in_order):
        return None
    ordered = torch.equal(place.flatten(), in_order)
    found = Decoding(None if ordered else place, _short(scale), _short(shift), tuple(scale.shape))
    z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    expected = given(z)
    agrees = expected is not None and difference(found(z), expected.float().cpu()) <= AGREES
    return found if agrees else None


def _short(values: Tensor) -> Tensor:
    """Reduce values to (1, ...) along the axes on which they are constant."""
    for axis in range(values.ndim):
        first = values.narrow(axis, 0, 1)
        if float((values - first).abs().max()) <= AGREES * float(values.abs().max()):
            values = first
    return values.contiguous().clone()


def encoded(network: nn.Module, images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mean latents (B, *shape) of images (B, C, H, W) by an autoencoder of images, or of one-frame videos.

    Raises:
        UserError: they have another shape.
    """
    frames = images.unsqueeze(2) if len(shape) == 4 else images
    result: Any = cast(Any, network).encode(frames)
    if (distribution := getattr(result, "latent_dist", None)) is not None:
        latents = distribution.mode()
    else:
        latents = result.latent if hasattr(result, "latent") else result.latents
    if latents.shape[1:] != shape:
        raise UserError(f"images encode to latents {tuple(latents.shape[1:])}, but the pipeline decodes {shape}")
    return latents


def decoded(network: nn.Module, latents: Tensor) -> Tensor:
    """Images (B, C, H, W), roughly in [-1, 1], of an autoencoder's latents (B, ...); of a video its middle frame."""
    made: Tensor = cast(Any, network).decode(latents, return_dict=False)[0]
    return middle(made) if made.ndim == 5 else made


def middle(frames: Tensor) -> Tensor:
    """The middle frames (N, C, H, W) of videos (N, C, F, H, W)."""
    return frames[:, :, frames.shape[2] // 2]
