"""The paper's network, diffusers' UNet2DModel, built from a few numbers (paper, appendix E).

Residual up and down sampling, a scale-and-shift time embedding, sine before cosine with half_dim - 1 in the
exponent, group norms with epsilon 1e-6, and zeros in the last layer of every branch, so that an untrained network
returns 0 and an untrained block passes its input on.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from progdist._utils.errors import UserError

Conditions = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""(batch) -> the condition of its examples by name, (B, ...) each; the batch has `labels` (B,), and may have more."""

Network = TypeVar("Network", bound=nn.Module)

TEXT_CONDITIONAL = (
    UNet2DConditionModel, PixArtTransformer2DModel, SD3Transformer2DModel, FluxTransformer2DModel,
)  # fmt: skip
"""Networks that attend to embeddings of a caption."""

SIZED = (
    UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel,
)  # fmt: skip
"""Networks whose config tells the size of their data."""


def unet(
    *,
    image: tuple[int, int, int],
    width: int,
    multipliers: Sequence[int],
    blocks: int = 1,
    attention: Sequence[int] = (),
    head_size: int | None = None,
    embedding: int | None = None,
    groups: int = 32,
    dropout: float = 0.0,
    classes: int = 0,
    heads: int = 1,
) -> UNet2DModel:
    """A U-Net with freshly drawn weights.

    Args:
        image: (channels, height, width) of the data; height and width divisible by 2^(levels - 1).
        width: channels at the first level.
        multipliers: one per level; level i has width * multipliers[i] channels at half the resolution of level i - 1.
        blocks: residual blocks to a level (one more on the way up).
        attention: resolutions with self-attention.
        head_size: channels of an attention head; None for one head.
        embedding: channels of the time embedding; None for four times the width.
        groups: of every group norm.
        dropout: within residual blocks, while training.
        classes: number of classes of a class-conditional network, 0 for none.
        heads: the output's channels as a multiple of the data's.

    Returns:
        A module called as network(z, timestep, class_labels=...).

    Raises:
        UserError: sizes that do not fit each other.
    """
    level_channels = [width * multiplier for multiplier in multipliers]
    attends = _attention_levels(image, width, level_channels, attention, groups)
    sides = image[1:]
    network = UNet2DModel(
        sample_size=sides if sides[0] != sides[1] else sides[0],
        in_channels=image[0],
        out_channels=heads * image[0],
        block_out_channels=tuple(level_channels),
        layers_per_block=blocks,
        down_block_types=tuple("AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in reversed(attends)),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=head_size,
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        norm_eps=1e-6,
        freq_shift=1,
        flip_sin_to_cos=False,
        dropout=dropout,
        time_embedding_dim=embedding,
        num_class_embeds=classes or None,
    )
    _zero_last_layers(network)
    return network


def _attention_levels(
    image: tuple[int, int, int], width: int, level_channels: Sequence[int], attention: Sequence[int], groups: int
) -> list[bool]:
    """Whether each level has self-attention.

    Raises:
        UserError: sizes that do not fit each other.
    """
    sides = image[1:]
    resolutions = [max(sides) >> level for level in range(len(level_channels))]
    divisor = 2 ** (len(level_channels) - 1)
    if any(side % divisor for side in sides):
        raise UserError(
            f"images of {sides[0]}x{sides[1]} do not halve {len(level_channels) - 1} times: choose a size divisible by "
            f"{divisor}, or fewer multipliers"
        )
    if width < 4 or width % 2:
        raise UserError(f"width {width} is too small for the time embedding, or odd: use an even number of 4 or more")
    if any(count % groups for count in level_channels):
        raise UserError(f"level widths {level_channels} do not divide into {groups} groups: change width or groups")
    if unknown := set(attention) - set(resolutions):
        raise UserError(f"attention at {sorted(unknown)}, but the network's resolutions are {resolutions}")
    return [resolution in attention for resolution in resolutions]


def _zero_last_layers(network: UNet2DModel) -> None:
    """Set the last layer of every branch, and of the network, to zero."""
    layers: list[nn.Module] = [network.conv_out]
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            layers.append(module.conv2)
        elif isinstance(module, Attention):
            layers.append(cast(nn.ModuleList, module.to_out)[0])
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def image_shape(network: nn.Module) -> tuple[int, int, int] | None:
    """(channels, height, width) of the data of a diffusers network; None for networks that do not tell."""
    if not isinstance(network, SIZED):
        return None
    size = network.config["sample_size"]
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    return (network.config["in_channels"], *sides) if len(sides) == 2 else None


def without_variance(network: Network) -> Network:
    """The network itself, without the output channels in which a U-Net tells a learned variance.

    They are of use to an ancestral sampler alone, and no stock pipeline takes a U-Net that has them.
    """
    if isinstance(network, UNet2DModel):
        channels, last = network.config["in_channels"], network.conv_out
        if last.out_channels == 2 * channels:
            narrow = nn.Conv2d(last.in_channels, channels, last.kernel_size[0], padding=last.padding[0])
            kept = {name: tensor[:channels].clone() for name, tensor in last.state_dict().items()}
            narrow.load_state_dict(kept)
            network.conv_out = narrow
            network.register_to_config(out_channels=channels)
    return network


def class_count(network: nn.Module) -> int:
    """How many classes the network is conditioned on, the one that stands for none included; 0 if on none."""
    if isinstance(network, DiTTransformer2DModel):
        return network.config["num_embeds_ada_norm"] + 1  # its table has one more, for none
    return (network.config["num_class_embeds"] or 0) if isinstance(network, UNet2DModel) else 0


def is_text_conditional(network: nn.Module) -> bool:
    """Whether the network attends to embeddings of a caption."""
    return isinstance(network, TEXT_CONDITIONAL)


def condition(network: nn.Module, labels: Tensor) -> dict[str, Any]:
    """The keyword arguments that tell a network the class of each example; none for an unconditional network."""
    return {"class_labels": labels} if class_count(network) else {}


def class_conditions(network: nn.Module, guidance: float | None = None) -> Conditions:
    """What tells a network the class of each example of a batch, and its guidance scale.

    Args:
        network: the one that is told.
        guidance: the scale where a batch has none of its own; None for networks that are told none.
    """
    return partial(_class_condition, network, guidance)


def _class_condition(network: nn.Module, guidance: float | None, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    labels = batch["labels"]
    if guidance is None:
        return condition(network, labels)
    scales = batch.get("guidance", torch.full((len(labels),), guidance, dtype=torch.float64))
    return {**condition(network, labels), "guidance": scales}
