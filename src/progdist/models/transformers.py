r"""How stock diffusers' text-conditional transformers are called, as their pipelines call them.

PixArtTransformer2DModel    z (B, C, H, W), the timestep, and of the caption its embeddings and their mask
SD3Transformer2DModel       z, the timestep, and of the caption its embeddings and a pooled one
FluxTransformer2DModel      the same, but z as a token for each of its 2x2 squares, (B, H W / 4, 4 C), and their places;
                            a thousandth of the timestep; and the guidance scale, if it takes one
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TransformerKind:
    """What is particular to one class of network.

    Attributes:
        call: (network, z, timestep, **condition) -> its output.
        caption: (config) -> the shapes of what it is given of one caption.
    """

    call: Callable[..., Any]
    caption: Callable[[Mapping[str, Any]], Shapes]


def _pixart(network: nn.Module, z: Tensor, timestep: Tensor, **condition: Tensor) -> Any:  # noqa: ANN401
    """The output of PixArt-Sigma's network, which its pipeline tells neither a resolution nor an aspect ratio."""
    untold = {"resolution": None, "aspect_ratio": None}
    return network(z, timestep=timestep, added_cond_kwargs=untold, **condition)


def _sd3(network: nn.Module, z: Tensor, timestep: Tensor, **condition: Tensor) -> Any:  # noqa: ANN401
    return network(z, timestep=timestep, **condition)


def _flux(network: nn.Module, z: Tensor, timestep: Tensor, **condition: Tensor) -> Tensor:
    rows, columns, words = z.shape[2] // 2, z.shape[3] // 2, condition["encoder_hidden_states"].shape[1]
    grid = torch.cartesian_prod(*(torch.arange(count) for count in (1, rows, columns)))
    places = {"img_ids": grid.to(z), "txt_ids": torch.zeros(words, 3).to(z)}
    found: Any = network(packed(z), timestep=timestep / 1000, **places, **condition)
    return unpacked(getattr(found, "sample", found), rows)


def packed(z: Tensor) -> Tensor:
    """Latents (B, C, H, W) as tokens (B, H W / 4, 4 C), row by row."""
    squares = z.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, H / 2, 2, W / 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, rows: int) -> Tensor:
    """Latents (B, C, H, W) from tokens (B, H W / 4, 4 C) in H / 2 rows."""
    squares = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (rows, -1))  # (B, H / 2, W / 2, C, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _pixart_caption(config: Mapping[str, Any]) -> Shapes:
    channels = config["caption_channels"] or config["cross_attention_dim"]
    return {"encoder_hidden_states": (300, channels), "encoder_attention_mask": (300,)}


def _pooled_caption(words: int, config: Mapping[str, Any]) -> Shapes:
    return {
        "encoder_hidden_states": (words, config["joint_attention_dim"]),
        "pooled_projections": (config["pooled_projection_dim"],),
    }


TRANSFORMERS: dict[type[nn.Module], TransformerKind] = {
    PixArtTransformer2DModel: TransformerKind(_pixart, _pixart_caption),
    SD3Transformer2DModel: TransformerKind(_sd3, lambda config: _pooled_caption(77 + 256, config)),
    FluxTransformer2DModel: TransformerKind(_flux, lambda config: _pooled_caption(512, config)),
}
"""By class."""
