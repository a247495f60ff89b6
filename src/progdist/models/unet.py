"""The paper's network, diffusers' UNet2DModel, built from a few numbers (paper, appendix E).

Residual up and down sampling, a scale-and-shift time embedding, sine before cosine with half_dim - 1 in the
exponent, group norms with epsilon 1e-6, and zeros in the last layer of every branch, so that an untrained network
returns 0 and an untrained block passes its input on.
"""

from collections.abc import Sequence
from typing import cast

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from progdist._utils.errors import UserError


def unet(
    *,
    image: tuple[int, int, int],  # (channels, height, width) of the data; height and width divisible by 2^(levels - 1)
    width: int,  # channels at the first level
    multipliers: Sequence[int],  # one per level; level i has width * multipliers[i] channels at 2^-i of the resolution
    blocks: int = 1,  # residual blocks per level (one more on the way up)
    attention: Sequence[int] = (),  # resolutions with self-attention
    head_size: int | None = None,  # channels of an attention head; None for one head
    embedding: int | None = None,  # channels of the time embedding; None for four times the width
    groups: int = 32,  # of every group norm
    dropout: float = 0.0,  # in residual blocks, during training
    classes: int = 0,  # of a class-conditional network; 0 for none
    heads: int = 1,  # output channels as a multiple of the data's
) -> UNet2DModel:
    """Build a U-Net with random weights.

    Returns:
        A module called as network(z, timestep, class_labels=...).

    Raises:
        UserError: the sizes do not match.
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
    """Whether each level has self-attention. Raise a UserError if the sizes do not match."""
    sides = image[1:]
    resolutions = [max(sides) >> level for level in range(len(level_channels))]
    divisor = 2 ** (len(level_channels) - 1)
    if any(side % divisor for side in sides):
        raise UserError(
            f"images of {sides[0]}x{sides[1]} cannot be halved {len(level_channels) - 1} times: choose a size "
            f"divisible by {divisor}, or fewer multipliers"
        )
    if width < 4 or width % 2:
        raise UserError(f"width is {width}, expected an even number of at least 4 for the time embedding")
    if any(count % groups for count in level_channels):
        raise UserError(f"level widths {level_channels} are not divisible by {groups} groups: change width or groups")
    if unknown := set(attention) - set(resolutions):
        raise UserError(f"attention is {sorted(unknown)}, expected some of the network's resolutions {resolutions}")
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
