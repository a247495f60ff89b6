r"""Discriminators: networks that separate real latents from a student's, D(z_s, s, c) -> logit.

There are two kinds: convolutions made from the shape of the data, for small images; and the teacher's own network up to
its middle, with a small head on its features. Frozen and shared, it costs only the memory of the head (Sauer et al.
2024, arXiv 2403.12015); a trained copy is the one of Lin et al. 2024 (arXiv 2402.13929), section 3.3.

In the conditional form the discriminator also sees the latents z_t from which z_s was made.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from progdist._utils.broadcasting import time_device
from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FREQUENCIES = 16  # in the features of a number
WIDTH, LEAST_SIDE = 64, 4  # channels of the first layer; the side down to which images are halved
BLOCKS = ("transformer_blocks", "blocks", "layers")  # names of the list of blocks in diffusers' transformers


@contextmanager
def untrained(network: nn.Module) -> Iterator[None]:
    """Compute no gradients for the network's weights inside the context; its input still gets them."""
    trained = [each for each in network.parameters() if each.requires_grad]
    for each in trained:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in trained:
            each.requires_grad_(True)


def number_features(values: Tensor) -> Tensor:
    """sin and cos of numbers (B, n) at frequencies from 1 to 1000, geometrically spaced: (B, 32 n) in float32."""
    place = time_device(values.device)
    rates = torch.logspace(0, 3, FREQUENCIES, dtype=torch.float64, device=place)
    angles = (values.to(place).double()[..., None] * rates).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1).float().to(values.device)


def condition_features(condition: Mapping[str, Tensor]) -> Tensor | None:
    """A condition as one vector per example, (B, n) in float32; None if it is empty.

    Integers, such as labels, become `number_features`; floats (B, ..., n) are averaged over the axes in between.
    """
    parts = []
    for value in condition.values():
        if value.is_floating_point():
            flat = value.float().reshape(len(value), -1, value.shape[-1] if value.ndim > 1 else 1)
            parts.append(flat.mean(1))
        else:
            parts.append(number_features(value.reshape(len(value), -1)))
    return torch.cat(parts, 1) if parts else None


class Convolutions(nn.Module):
    """Convolutions, or linear layers for vectors; time and condition are added after the first layer.

    Args:
        x: a few examples, (B, C, ...), for their shape.
        condition: the condition of these examples.
        conditional: whether it also sees z_t.
    """

    def __init__(self, x: Tensor, condition: Mapping[str, Tensor], *, conditional: bool) -> None:
        super().__init__()
        channels, dimensions = x.shape[1] * (2 if conditional else 1), x.ndim - 2
        self.first = _layer(dimensions, channels, WIDTH)
        told = condition_features(condition)
        self.told = nn.Linear(2 * FREQUENCIES + (0 if told is None else told.shape[1]), WIDTH)
        layers, width, side = [_layer(dimensions, WIDTH, WIDTH)], WIDTH, max(x.shape[2:], default=1)
        while side > LEAST_SIDE or len(layers) < 3:
            wider = 2 * WIDTH if len(layers) < 4 else 4 * WIDTH
            layers.append(_layer(dimensions, width, wider, stride=2 if side > LEAST_SIDE else 1))
            side, width = math.ceil(side / 2) if side > LEAST_SIDE else side, wider
        self.layers = nn.ModuleList(layers)
        self.last = _layer(dimensions, width, 1)

    def forward(
        self,
        z: Tensor,
        s: Tensor,
        condition: Mapping[str, Tensor],
        z_t: Tensor | None = None,
        t: Tensor | None = None,
    ) -> Tensor:
        """The logit (B,) of latents z (B, C, ...) at times s (B,), made from the latents z_t."""
        seen = z if z_t is None else torch.cat([z, z_t], 1)
        told = condition_features(condition)
        times = number_features(s[:, None]).to(z.device)
        features = self.told(times if told is None else torch.cat([times, told.to(z.device)], 1))
        hidden = self.first(seen.float())
        hidden = nn.functional.leaky_relu(hidden + features.reshape(*features.shape, *(1,) * (hidden.ndim - 2)), 0.2)
        for layer in self.layers:
            hidden = nn.functional.leaky_relu(layer(hidden), 0.2)
        return self.last(hidden).flatten(1).float().mean(1)


def _layer(dimensions: int, channels: int, width: int, stride: int = 1) -> nn.Module:
    """A 3-wide convolution over this many dimensions, or a linear layer for none."""
    if dimensions == 0:
        return nn.Linear(channels, width)
    if dimensions not in CONVOLUTIONS:
        raise UserError(
            f"discriminator convolutions supports data of up to 3 dimensions, got {dimensions}: use teacher"
        )
    return CONVOLUTIONS[dimensions](channels, width, 3, stride, 1)


class TeacherFeatures(nn.Module):
    """The features of the teacher's network at its middle, and a head that makes a logit at each position.

    Args:
        teacher: the denoiser whose network is used.
        x: a few examples, (B, C, ...).
        condition: the condition of these examples.
        conditional: whether it also sees z_t.
        trained: whether to train a copy of the network, too; otherwise the teacher's own is shared and frozen.

    Raises:
        UserError: the middle of this network is unknown.
    """

    def __init__(
        self, teacher: Denoiser, x: Tensor, condition: Mapping[str, Tensor], *, conditional: bool, trained: bool
    ) -> None:
        super().__init__()
        self.own = copy.deepcopy(teacher.network).requires_grad_(True) if trained else None
        self._teacher = (teacher,)  # hidden, so that it is neither trained nor saved with this module
        with torch.no_grad():
            width = self._features(x, torch.ones(len(x), dtype=torch.float64), condition).shape[-1]
        self.head = nn.Sequential(
            nn.LayerNorm(width * (2 if conditional else 1)), nn.Linear(width * (2 if conditional else 1), WIDTH),
            nn.SiLU(), nn.Linear(WIDTH, 1),
        )  # fmt: skip

    def forward(
        self,
        z: Tensor,
        s: Tensor,
        condition: Mapping[str, Tensor],
        z_t: Tensor | None = None,
        t: Tensor | None = None,
    ) -> Tensor:
        """The logit (B,) of latents z (B, C, ...) at times s (B,), made from the latents z_t at t."""
        features = self._features(z, s, condition)
        if z_t is not None and t is not None:
            features = torch.cat([features, self._features(z_t, t, condition)], -1)
        return self.head(features.float()).flatten(1).mean(1)

    def _features(self, z: Tensor, s: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The features of the network's middle, (B, places, channels); times before its first are raised to it."""
        (teacher,) = self._teacher
        denoiser = teacher if self.own is None else teacher.with_network(self.own)
        with untrained(denoiser.network) if self.own is None else nullcontext():
            return middle_features(denoiser, z, s.clamp(min=1 / denoiser.most_steps), condition)


def middle_features(denoiser: Denoiser, z: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """The output of the middle of a denoiser's network for latents (B, C, ...) at times (B,): (B, places, channels)."""
    module = _middle(denoiser.network)
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Any) -> None:  # noqa: ANN401
        seen.append(output if isinstance(output, Tensor) else output[0])
        raise _Reached

    handle = module.register_forward_hook(keep)
    try:
        denoiser(z, t, **condition)
    except _Reached:
        pass
    finally:
        handle.remove()
    features = seen[0]
    return features.flatten(2).transpose(1, 2) if features.ndim > 3 else features


class _Reached(Exception):
    pass


def _middle(network: nn.Module) -> nn.Module:
    """The module in the middle of a diffusers network. Raise a UserError where that is unknown."""
    unwrapped = getattr(network, "get_base_model", None)  # a network with adapters
    base = unwrapped() if unwrapped else network
    if isinstance(middle := getattr(base, "mid_block", None), nn.Module):
        return middle
    for name in BLOCKS:
        if isinstance(blocks := getattr(base, name, None), nn.ModuleList) and len(blocks):
            return blocks[len(blocks) // 2]
    raise UserError(
        f"discriminator teacher requires a network whose middle is known, got a {type(base).__name__}: use "
        "discriminator convolutions, or give the network a mid_block"
    )
