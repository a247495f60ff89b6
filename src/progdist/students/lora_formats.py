r"""LoRA weights with the layer names of other programs.

    diffusers   transformer.LAYER.lora_A.weight, .lora_B.weight              (unet.LAYER... of U-Nets)
    kohya       lora_unet_LAYER.lora_down.weight, .lora_up.weight, .alpha     dots are underscores, alpha is the rank
    comfyui     diffusion_model.LAYER... or transformer.LAYER...             for U-Nets those of kohya

A layer's correction to its weight is B A, with A (rank, inputs) and B (outputs, rank). If a program joins several of
diffusers' layers in one, e.g. q, k and v, the corrections of the parts are its rows, and its rank is the sum of theirs:

    [B_q A_q; B_k A_k; B_v A_v] = diag(B_q, B_k, B_v) [A_q; A_k; A_v]

and if it has a modulation's shift before its scale, the halves of B's rows are exchanged. Every file is therefore
exact; none is an approximation of lower rank.

The original names of a network's layers are from diffusers' `loaders.single_file_utils`; the names that readers accept
are from its `loaders.lora_conversion_utils` and ComfyUI's `comfy/lora.py` (`model_lora_keys_unet`: `diffusion_model.`
with any layer of its own network, and `lora_unet_` with underscores).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from progdist._utils.errors import UserError

Format = Literal["diffusers", "kohya", "comfyui"]
"""Formats of layer names."""

FORMATS: tuple[Format, ...] = get_args(Format)
"""All formats."""

Names = Callable[[Sequence[str]], dict[str, str]]
"""Diffusers' layer names -> another program's.

A name that ends in `#i` is the i-th part of a layer; a name that ends in `~` has the halves of its rows exchanged.
"""

PARTS = {"linear1": 4}
"""Number of diffusers' layers in one of another program, by the end of its name; three for others (q, k, v)."""


@dataclass(frozen=True)
class Naming:
    """The layer names of a format for a family of networks."""

    prefix: str
    names: Names
    underscores: bool = False  # replace the dots in names; A and B are called down and up, with an alpha


@dataclass(frozen=True)
class Family:
    """The networks of a stock pipeline: a `Naming` per format, or the reason why it is refused."""

    kohya: Naming | str
    comfyui: Naming | str
    part: str = "transformer"  # part of the pipeline, diffusers' prefix of its layers


def same(layers: Sequence[str]) -> dict[str, str]:
    """Diffusers' own names."""
    return {layer: layer for layer in layers}


def by_table(table: Mapping[str, str], layers: Sequence[str]) -> dict[str, str]:
    """Names from a table of patterns, in which `{}` is a number; a UserError names a layer that is missing in it."""
    patterns = [(re.compile(re.escape(ours).replace(r"\{\}", r"(\d+)")), theirs) for ours, theirs in table.items()]
    named = {}
    for layer in layers:
        found = ((pattern.fullmatch(layer), theirs) for pattern, theirs in patterns)
        names = [theirs.format(*match.groups()) for match, theirs in found if match]
        if not names:
            raise UserError(f"the layer {layer} has no name in this format: use another --lora-format")
        named[layer] = names[0]
    return named


SGM_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Layers of a residual block."""

SGM_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""Layers outside the blocks."""


def sgm(layers: Sequence[str]) -> dict[str, str]:
    """Names of a U-Net's layers in generative-models, the code in which kohya's scripts train SDXL.

    With n residual blocks each, block b starts at input block 1 + b (n + 1) and output block b (n + 1), because its
    downsampler is a separate input block, and its upsampler the last part of its last output block.
    """
    count = 1 + max(
        int(match[1]) for layer in layers if (match := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", layer))
    )
    attentive = {match[1] for layer in layers if (match := re.match(r"up_blocks\.(\d+)\.attentions\.", layer))}
    return {layer: _sgm(layer, count, attentive) for layer in layers}


def _sgm(layer: str, count: int, attentive: set[str]) -> str:
    if layer in SGM_TOP:
        return SGM_TOP[layer]
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", layer):
        kind, index, rest = match.groups()
        place = f"middle_block.{2 * int(index) + (kind == 'attentions')}"
        return f"{place}.{SGM_LAYERS.get(rest, rest)}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", layer)
    if match is None:
        raise UserError(f"the layer {layer} has no name in this format: use another format")
    side, block, kind, index, rest = match.groups()
    first = int(block) * (count + 1)
    if kind == "downsamplers":
        return f"input_blocks.{1 + first + count}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + count}.{1 + (block in attentive)}.conv"
    place = f"input_blocks.{1 + first + int(index)}" if side == "down" else f"output_blocks.{first + int(index)}"
    return f"{place}.{int(kind == 'attentions')}.{SGM_LAYERS.get(rest, rest)}"


def _attention(ours: str, theirs: str, parts: Sequence[str] = ("to_q", "to_k", "to_v")) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}#{index}" for index, part in enumerate(parts)}


ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")

SD3_BLOCKS = {
    **_attention("transformer_blocks.{}.attn", "joint_blocks.{}.x_block.attn.qkv"),
    **_attention("transformer_blocks.{}.attn2", "joint_blocks.{}.x_block.attn2.qkv"),
    **_attention("transformer_blocks.{}.attn", "joint_blocks.{}.context_block.attn.qkv", ADDED),
    "transformer_blocks.{}.attn.to_out.0": "joint_blocks.{}.x_block.attn.proj",
    "transformer_blocks.{}.attn2.to_out.0": "joint_blocks.{}.x_block.attn2.proj",
    "transformer_blocks.{}.attn.to_add_out": "joint_blocks.{}.context_block.attn.proj",
    "transformer_blocks.{}.norm1.linear": "joint_blocks.{}.x_block.adaLN_modulation.1",
    "transformer_blocks.{}.norm1_context.linear": "joint_blocks.{}.context_block.adaLN_modulation.1",
    "transformer_blocks.{}.ff.net.0.proj": "joint_blocks.{}.x_block.mlp.fc1",
    "transformer_blocks.{}.ff.net.2": "joint_blocks.{}.x_block.mlp.fc2",
    "transformer_blocks.{}.ff_context.net.0.proj": "joint_blocks.{}.context_block.mlp.fc1",
    "transformer_blocks.{}.ff_context.net.2": "joint_blocks.{}.context_block.mlp.fc2",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1~",
    "proj_out": "final_layer.linear",
}
"""Stable Diffusion 3."""


def sd3(layers: Sequence[str]) -> dict[str, str]:
    """Names in Stable Diffusion 3: the last block's context is only scaled and shifted, in the opposite order."""
    last = max(int(match[1]) for layer in layers if (match := re.match(r"transformer_blocks\.(\d+)\.", layer)))
    named, modulation = by_table(SD3_BLOCKS, layers), f"transformer_blocks.{last}.norm1_context.linear"
    if modulation in named and f"transformer_blocks.{last}.attn.to_add_out" not in named:
        named[modulation] += "~"
    return named


FLUX = {
    **_attention("transformer_blocks.{}.attn", "double_blocks.{}.img_attn.qkv"),
    **_attention("transformer_blocks.{}.attn", "double_blocks.{}.txt_attn.qkv", ADDED),
    "transformer_blocks.{}.attn.to_out.0": "double_blocks.{}.img_attn.proj",
    "transformer_blocks.{}.attn.to_add_out": "double_blocks.{}.txt_attn.proj",
    "transformer_blocks.{}.norm1.linear": "double_blocks.{}.img_mod.lin",
    "transformer_blocks.{}.norm1_context.linear": "double_blocks.{}.txt_mod.lin",
    "transformer_blocks.{}.ff.net.0.proj": "double_blocks.{}.img_mlp.0",
    "transformer_blocks.{}.ff.net.2": "double_blocks.{}.img_mlp.2",
    "transformer_blocks.{}.ff_context.net.0.proj": "double_blocks.{}.txt_mlp.0",
    "transformer_blocks.{}.ff_context.net.2": "double_blocks.{}.txt_mlp.2",
    **_attention("single_transformer_blocks.{}.attn", "single_blocks.{}.linear1"),
    "single_transformer_blocks.{}.proj_mlp": "single_blocks.{}.linear1#3",
    "single_transformer_blocks.{}.proj_out": "single_blocks.{}.linear2",
    "single_transformer_blocks.{}.norm.linear": "single_blocks.{}.modulation.lin",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1~",
    "proj_out": "final_layer.linear",
}
"""Flux."""

REFINER = "txt_in.individual_token_refiner.blocks.{}"

HUNYUAN_VIDEO = {
    **{
        ours: theirs.replace("_attn.", "_attn_").replace("_mod.lin", "_mod.linear")
        for ours, theirs in FLUX.items()
        if ours.startswith("transformer_blocks")
    },
    **{
        f"transformer_blocks.{{}}.{ours}.{layer}": f"double_blocks.{{}}.{theirs}.{name}"
        for ours, theirs in (("ff", "img_mlp"), ("ff_context", "txt_mlp"))
        for layer, name in (("net.0.proj", "fc1"), ("net.2", "fc2"))
    },
    **{
        ours: theirs.replace("modulation.lin", "modulation.linear")
        for ours, theirs in FLUX.items()
        if ours.startswith("single_transformer_blocks")
    },
    **_attention("context_embedder.token_refiner.refiner_blocks.{}.attn", f"{REFINER}.self_attn_qkv"),
    "context_embedder.token_refiner.refiner_blocks.{}.attn.to_out.0": f"{REFINER}.self_attn_proj",
    "context_embedder.token_refiner.refiner_blocks.{}.norm_out.linear": f"{REFINER}.adaLN_modulation.1",
    "context_embedder.token_refiner.refiner_blocks.{}.ff.net.0.proj": f"{REFINER}.mlp.fc1",
    "context_embedder.token_refiner.refiner_blocks.{}.ff.net.2": f"{REFINER}.mlp.fc2",
    "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.in_layer",
    "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.out_layer",
    "context_embedder.time_text_embed.text_embedder.linear_1": "txt_in.c_embedder.in_layer",
    "context_embedder.time_text_embed.text_embedder.linear_2": "txt_in.c_embedder.out_layer",
    "context_embedder.proj_in": "txt_in.input_embedder",
    **{ours: theirs for ours, theirs in FLUX.items() if ours.startswith(("time_text_embed", "norm_out", "proj_out"))},
}
"""HunyuanVideo: blocks as in Tencent's code, embedders as in ComfyUI's."""

WAN_BLOCKS = {
    f"blocks.{{}}.{ours}.{layer}": f"blocks.{{}}.{theirs}.{name}"
    for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for layer, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
} | {"blocks.{}.ffn.net.0.proj": "blocks.{}.ffn.0", "blocks.{}.ffn.net.2": "blocks.{}.ffn.2"}
"""Wan's blocks, the only layers that musubi-tuner trains."""

WAN = {
    **WAN_BLOCKS,
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
"""Wan."""

LTX = {
    **{
        f"transformer_blocks.{{}}.{layer}": f"transformer_blocks.{{}}.{layer}"
        for layer in (
            *(
                f"{attention}.{name}"
                for attention in ("attn1", "attn2")
                for name in ("to_q", "to_k", "to_v", "to_out.0")
            ),
            "ff.net.0.proj",
            "ff.net.2",
        )
    },
    "caption_projection.linear_{}": "caption_projection.linear_{}",
    "time_embed.emb.timestep_embedder.linear_{}": "adaln_single.emb.timestep_embedder.linear_{}",
    "time_embed.linear": "adaln_single.linear",
    "proj_in": "patchify_proj",
    "proj_out": "proj_out",
}
"""LTX-Video."""

LUMINA2 = {
    name: theirs
    for block in ("layers", "noise_refiner", "context_refiner")
    for name, theirs in {
        **_attention(f"{block}.{{}}.attn", f"{block}.{{}}.attention.qkv"),
        f"{block}.{{}}.attn.to_out.0": f"{block}.{{}}.attention.out",
        **{f"{block}.{{}}.feed_forward.linear_{i}": f"{block}.{{}}.feed_forward.w{i}" for i in (1, 2, 3)},
        f"{block}.{{}}.norm1.linear": f"{block}.{{}}.adaLN_modulation.1",
    }.items()
} | {
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_caption_embed.caption_embedder.1": "cap_embedder.1",
    "x_embedder": "x_embedder",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}
"""Lumina-Image 2."""


def _kohya(names: Names) -> Naming:
    return Naming("lora_unet_", names, underscores=True)


def _native(table: Mapping[str, str]) -> Naming:
    return Naming("diffusion_model.", partial(by_table, table))


NO_KOHYA = "whose layer names in kohya's scripts are unknown"
TWO_READERS = "which diffusers and ComfyUI read under different names"
UNREAD = "because no reader is known to check musubi-tuner's names"
NOT_IN_COMFYUI = "whose layer names in ComfyUI's own nodes are unknown"

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(_kohya(same), _kohya(same), "unet"),
    "StableDiffusionXLPipeline": Family(_kohya(sgm), _kohya(sgm), "unet"),
    "StableDiffusion3Pipeline": Family(_kohya(sd3), Naming("diffusion_model.", sd3)),
    "FluxPipeline": Family(_kohya(partial(by_table, FLUX)), Naming("transformer.", same)),
    "WanPipeline": Family(_kohya(partial(by_table, WAN_BLOCKS)), _native(WAN)),
    "LTXPipeline": Family(NO_KOHYA, _native(LTX)),
    "QwenImagePipeline": Family(_kohya(same), Naming("diffusion_model.", same)),
    "ZImagePipeline": Family(TWO_READERS, Naming("diffusion_model.", same)),
    "Lumina2Pipeline": Family(NO_KOHYA, _native(LUMINA2)),
    "HunyuanVideoPipeline": Family(UNREAD, _native(HUNYUAN_VIDEO)),
    "SanaPipeline": Family(NO_KOHYA, NOT_IN_COMFYUI),
    "CogVideoXPipeline": Family(NO_KOHYA, NOT_IN_COMFYUI),
}
"""Families by the class of the stock pipeline."""


def naming(pipeline: str, form: Format) -> Naming:
    """The layer names of a format for a pipeline's network.

    Raises:
        UserError: the format does not support the pipeline.
    """
    family = FAMILIES.get(pipeline)
    if form == "diffusers":
        return Naming(f"{family.part if family else 'transformer'}.", same)
    found = getattr(family, form) if family else "whose layer names are known only in diffusers"
    if isinstance(found, str):
        others = [each for each in FORMATS if each == "diffusers" or isinstance(getattr(family, each, ""), Naming)]
        use = " or ".join(others)
        raise UserError(f"--lora-format {form} does not support {pipeline}, {found}: use {use}")
    return found


def converted(weights: Mapping[str, Tensor], pipeline: str, form: Format) -> dict[str, Tensor]:
    """Convert LoRA weights of a pipeline's network, A and B by peft's layer names, to a format.

    Args:
        weights: `LAYER.lora_A.weight` (rank, inputs, ...) and `LAYER.lora_B.weight` (outputs, rank, ...).
        pipeline: the class of the stock pipeline.
        form: the format.

    Raises:
        UserError: the format does not support the pipeline, or a layer's A or B, or a part of a layer, is missing.
    """
    pairs = _pairs(weights)
    kind = naming(pipeline, form)
    groups: dict[str, dict[int, tuple[Tensor, Tensor]]] = defaultdict(dict)
    for layer, name in kind.names(list(pairs)).items():
        down, up = pairs[layer]
        place, _, index = name.partition("#")
        if place.endswith("~"):
            place, up = place[:-1], torch.cat(up.chunk(2)[::-1])
        groups[place][int(index) if index else -1] = (down, up)
    written = {}
    for place, parts in groups.items():
        down, up = _one(place, parts)
        if kind.underscores:
            name = kind.prefix + place.replace(".", "_")
            written |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            written[f"{name}.alpha"] = torch.tensor(float(len(down)))
        else:
            written |= {f"{kind.prefix}{place}.lora_A.weight": down, f"{kind.prefix}{place}.lora_B.weight": up}
    return {name: tensor.contiguous() for name, tensor in written.items()}


def _pairs(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of every layer."""
    layers = sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in weights})
    expected = {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    if odd := sorted(expected ^ weights.keys()):
        raise UserError(f"expected a lora_A.weight and a lora_B.weight of every layer, got {odd[0]}")
    return {layer: (weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"]) for layer in layers}


def _one(place: str, parts: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A and B of one layer of another program, from those of its parts."""
    if -1 in parts:
        return parts[-1]
    count = PARTS.get(place.rpartition(".")[2], 3)
    if sorted(parts) != list(range(count)):
        raise UserError(f"{place} joins {count} layers of diffusers: expected LoRA weights of all, got {len(parts)}")
    downs, ups = zip(*(parts[index] for index in range(count)), strict=True)
    return torch.cat(downs), torch.block_diag(*ups)
