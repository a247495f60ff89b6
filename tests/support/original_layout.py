"""A Stable Diffusion pipeline as one file in the original layout, whose names diffusers reads back.

The names are those of CompVis' `latent-diffusion`: their counterparts in diffusers are in
`diffusers.loaders.single_file_utils` (`DIFFUSERS_TO_LDM_MAPPING`, `convert_ldm_unet_checkpoint`,
`convert_ldm_vae_checkpoint`, `convert_ldm_clip_checkpoint`), which maps the other way.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

NETWORK, AUTOENCODER, ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
PIECES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def write_original(pipeline: Any, file: Path, more: Mapping[str, Tensor] | None = None) -> Path:  # noqa: ANN401
    """The file of a StableDiffusionPipeline: network, autoencoder and text encoder."""
    unet, vae, encoder = (getattr(pipeline, part).state_dict() for part in ("unet", "vae", "text_encoder"))
    layers, config = pipeline.unet.config.layers_per_block, pipeline.unet.config
    tensors = {NETWORK + network_name(name, layers, config.up_block_types): each for name, each in unet.items()}
    blocks = len(pipeline.vae.config.block_out_channels)
    for name, each in vae.items():
        original = autoencoder_name(name, blocks)
        convolution = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", original)
        tensors[AUTOENCODER + original] = each[:, :, None, None] if convolution else each
    prefix = "" if next(iter(encoder)).startswith("text_model.") else "text_model."
    tensors |= {ENCODER + prefix + name: each for name, each in encoder.items()}
    length = next(len(each) for name, each in encoder.items() if name.endswith("position_embedding.weight"))
    tensors |= {  # what released files also hold
        f"{ENCODER}text_model.embeddings.position_ids": torch.arange(length)[None],
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.ones(()),
        "model_ema.diffusion_modeltime_embed0weight": torch.ones(3),
    }
    contiguous = {name: each.contiguous().clone() for name, each in (tensors | dict(more or {})).items()}
    safetensors.torch.save_file(contiguous, file)
    return file


def network_name(name: str, layers: int, up: Sequence[str]) -> str:
    """The original name of a U-Net's weight."""
    for ours, theirs in PIECES.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    block, kind, number, rest = _split(name)
    if block.startswith("down"):
        first = int(block.split(".")[1]) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        place = f"input_blocks.{first + number + 1}"
    elif block.startswith("up"):
        index = int(block.split(".")[1])
        if kind == "upsamplers":
            attends = "CrossAttn" in up[index]
            return f"output_blocks.{index * (layers + 1) + layers}.{2 if attends else 1}.{rest}"
        place = f"output_blocks.{index * (layers + 1) + number}"
    else:
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{_resnet(rest) if kind == 'resnets' else rest}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_resnet(rest)}"


def autoencoder_name(name: str, blocks: int) -> str:
    """The original name of an AutoencoderKL's weight."""
    found = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2", name)
    found = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", found)

    def turned(match: re.Match[str]) -> str:
        return f"decoder.up.{blocks - 1 - int(match[1])}."

    found = re.sub(r"decoder\.up_blocks\.(\d+)\.", turned, found)
    found = re.sub(r"(decoder\.up\.\d+)\.resnets", r"\1.block", found).replace("upsamplers.0", "upsample")
    found = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", found)
    found = found.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    found = found.replace("conv_norm_out", "norm_out").replace("group_norm", "norm")
    return re.sub(r"attn_1\.to_(q|k|v|out\.0)\.", lambda match: f"attn_1.{_projection(match[1])}.", found)


def _projection(name: str) -> str:
    return "proj_out" if name == "out.0" else name


def _resnet(rest: str) -> str:
    part, _, last = rest.partition(".")
    return f"{RESNET[part]}.{last}"


def _split(name: str) -> tuple[str, str, int, str]:
    match = re.fullmatch(r"((?:down|up)_blocks\.\d+|mid_block)\.(\w+)\.(\d+)\.(.*)", name)
    assert match, name
    return match[1], match[2], int(match[3]), match[4]
