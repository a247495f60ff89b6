"""The inputs of the networks of stock pipelines, by class: shapes alone, without weights or prompts.

    UNet2DConditionModel            z, time, a prompt's tokens; for SDXL the pooled prompt and the image's size, too
    SD3, PixArt, Sana, Z-Image      z, time, a prompt's tokens
    Flux, Qwen-Image                z packed, (H/2 W/2) tokens of 2x2 latents; Flux takes a guidance scale, too
    Wan, LTX, HunyuanVideo,         z with frames; for LTX as tokens
      CogVideoX
    StableAudio                     z of (channels, length)

Sizes are the defaults of the pipeline's call, or of its network's config if the call has none; a prompt has the number
of tokens that the pipeline pads it to, or its maximum. The facts are those of diffusers' pipelines; tests compare the
shapes with the recorded calls of these pipelines.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist.models.components import PipelineFolder
from progdist.models.networks import CLIP_TOKENS, NETWORKS

Config = Mapping[str, Any]
Arguments = dict[str, Any]
LARGEST, MOST_FRAMES = 2**16, 2**12  # pixels per side, and frames


@dataclass(frozen=True)
class Shape:
    """The latents of one example, and the tokens of its prompt."""

    height: int
    width: int
    frames: int  # frames of latents; 1 for images
    tokens: int


@dataclass(frozen=True)
class Compression:
    """Pixels per side, and frames, of one latent."""

    space: int
    time: int = 1


@dataclass(frozen=True)
class NetworkInputs:
    """The call of one class of networks.

    Args:
        arguments: (config, shape, batch) -> the arguments by name, on the default device.
        compression: compression of the autoencoder, by its config, which is empty if the folder has none.
        side: default height and width of the latents, if the pipeline's call names no pixels.
        tokens: (tokens of `max_sequence_length`, config) -> the number that the network takes.
        frames: whether it makes videos.
        fixed: whether its size cannot be chosen.
        multiple: number that must divide height and width of the latents, by the network's config.
        unknown: fields of a config that imply further, unknown inputs, in words; empty for none.
    """

    arguments: Callable[[Config, Shape, int], Arguments]
    compression: Callable[[Config], Compression]
    side: Callable[[Config], Any] = lambda config: config["sample_size"]
    tokens: Callable[[int, Config], int] = lambda longest, config: longest
    frames: bool = False
    fixed: bool = False
    multiple: Callable[[Config], int] = lambda config: config.get("patch_size") or 1
    unknown: Callable[[Config], str] = lambda config: ""


@dataclass(frozen=True)
class ExampleInputs:
    """The inputs of a pipeline's network at one size."""

    kind: NetworkInputs
    config: Config  # config of the network
    shape: Shape
    size: str  # size of a sample, in words

    def arguments(self, batch: int) -> Arguments:
        """The arguments of a call with a batch, on the default device."""
        return self.kind.arguments(self.config, self.shape, batch)


def example_inputs(
    folder: PipelineFolder,
    config: Config,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    tokens: int | None = None,
) -> ExampleInputs:
    """The inputs of the network of a pipeline's folder, by its config, at a size in pixels and frames.

    None stands for the default of the pipeline's call.

    Raises:
        UserError: the network's inputs are not known, or it does not take the size.
    """
    name = folder.component_class(folder.network).__name__
    if name not in INPUTS:
        raise UserError(f"{folder.path} has a {name} of unknown inputs: expected one of {', '.join(INPUTS)}")
    kind = INPUTS[name]
    if reason := kind.unknown(config):
        raise UserError(f"{folder.path}: expected a network that takes only a prompt, got further inputs ({reason})")
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(folder.pipeline.__call__).parameters.items()
        if isinstance(parameter.default, int)
    }
    asked = {"height": height, "width": width, "frames": frames}
    _check_asked(asked, kind, name)
    file = folder.path / "vae" / "config.json"
    scale = _compression(kind, read_json(file) if file.is_file() else {}, folder)
    sides = _latent_sides(kind, config, scale, (height or defaults.get("height"), width or defaults.get("width")))
    count = frames or defaults.get("num_frames") or config.get("sample_frames") or 1
    longest = tokens or kind.tokens(defaults.get("max_sequence_length", CLIP_TOKENS), config)
    shape = Shape(*sides, (count - 1) // scale.time + 1 if kind.frames else 1, longest)
    size = f"{sides[0] * scale.space}x{sides[1] * scale.space} pixels" + (f", {count} frames" if kind.frames else "")
    return ExampleInputs(kind, config, shape, f"{shape.width} latents of sound" if kind.fixed else size)


def _check_asked(asked: Mapping[str, int | None], kind: NetworkInputs, name: str) -> None:
    """Refuse a size that the network does not take."""
    given = [key for key, value in asked.items() if value is not None]
    idle = [key for key in given if kind.fixed or (key == "frames" and not kind.frames)]
    if idle:
        raise UserError(f"--{idle[0]} has no effect on a {name}: remove it")
    for key in given:
        value, most = asked[key] or 0, MOST_FRAMES if key == "frames" else LARGEST
        if not 1 <= value <= most:
            raise UserError(f"--{key} is {value}, expected 1 to {most}")


def _compression(kind: NetworkInputs, vae: Config, folder: PipelineFolder) -> Compression:
    """The compression of the folder's autoencoder; a UserError if its config lacks the numbers."""
    try:
        found = kind.compression(vae)
        if all(isinstance(each, int) and 1 <= each <= 256 for each in (found.space, found.time)):
            return found
        reason = f"{found.space} pixels and {found.time} frames to a latent"
    except (TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
    raise UserError(f"{folder.path}/vae/config.json is damaged ({reason}): restore it")


def _latent_sides(
    kind: NetworkInputs, config: Config, scale: Compression, pixels: tuple[int | None, int | None]
) -> tuple[int, int]:
    """Height and width of the latents; a UserError if the size is unknown, or not divisible."""
    default = kind.side(config)
    both = tuple(default) if isinstance(default, list | tuple) else (default, default)
    multiple, found = kind.multiple(config), []
    for name, side, asked in zip(("height", "width"), both, pixels, strict=True):
        latents = side if asked is None else asked // scale.space
        if not isinstance(latents, int):
            raise UserError(f"the network's config has no sample_size: pass --{name}")
        if not kind.fixed and (latents < 1 or latents % multiple or (asked or 0) % scale.space):
            raise UserError(f"{name} {asked or latents * scale.space}: expected a multiple of {multiple * scale.space}")
        found.append(latents)
    return found[0], found[1]


def _image_blocks(vae: Config) -> Compression:
    """AutoencoderKL: each block except the last halves the sides."""
    return Compression(2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1))


def _deep_blocks(vae: Config) -> Compression:
    """AutoencoderDC, of Sana."""
    return Compression(2 ** (len(vae.get("encoder_block_out_channels", (0,) * 6)) - 1))


def _wan_vae(vae: Config) -> Compression:
    return Compression(vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4))


def _ltx_vae(vae: Config) -> Compression:
    halvings = 2 ** sum(map(bool, vae.get("spatio_temporal_scaling", (True, True, True, False))))
    return Compression(vae.get("patch_size", 4) * halvings, vae.get("patch_size_t", 1) * halvings)


def _hunyuan_vae(vae: Config) -> Compression:
    return Compression(vae.get("spatial_compression_ratio", 8), vae.get("temporal_compression_ratio", 4))


def _cog_vae(vae: Config) -> Compression:
    return Compression(_image_blocks(vae).space, int(vae.get("temporal_compression_ratio", 4)))


def _qwen_vae(vae: Config) -> Compression:
    return Compression(2 ** len(vae.get("temperal_downsample", (0,) * 3)))


def _numbers(*shape: int) -> Tensor:
    """Arbitrary numbers of a shape."""
    return torch.zeros(shape)


def _times(batch: int) -> Tensor:
    return torch.ones(batch)


def _ones(*shape: int) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones(shape, dtype=torch.int64)


def _unet(config: Config, shape: Shape, batch: int) -> Arguments:
    of_prompt = NETWORKS["UNet2DConditionModel"].prompt
    assert of_prompt is not None
    found: Arguments = {name: _numbers(batch, *one) for name, one in of_prompt(config).items()}
    found["encoder_hidden_states"] = _numbers(batch, shape.tokens, found["encoder_hidden_states"].shape[-1])
    added = {name: found.pop(name) for name in ("text_embeds", "time_ids") if name in found}
    if added:
        found["added_cond_kwargs"] = added
    if config["time_cond_proj_dim"]:
        found["timestep_cond"] = _numbers(batch, config["time_cond_proj_dim"])
    z = _numbers(batch, config["in_channels"], shape.height, shape.width)
    return {"sample": z, "timestep": _times(batch), **found}


def _sd3(config: Config, shape: Shape, batch: int) -> Arguments:
    return {
        "hidden_states": _numbers(batch, config["in_channels"], shape.height, shape.width),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["joint_attention_dim"]),
        "pooled_projections": _numbers(batch, config["pooled_projection_dim"]),
    }


def _flux(config: Config, shape: Shape, batch: int) -> Arguments:
    packed = shape.height * shape.width // 4
    guidance = {"guidance": _times(batch)} if config["guidance_embeds"] else {}
    return {
        "hidden_states": _numbers(batch, packed, config["in_channels"]),
        "timestep": _times(batch),
        "pooled_projections": _numbers(batch, config["pooled_projection_dim"]),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["joint_attention_dim"]),
        "txt_ids": _numbers(shape.tokens, 3),
        "img_ids": _numbers(packed, 3),
        **guidance,
    }


def _qwen(config: Config, shape: Shape, batch: int) -> Arguments:
    guidance = {"guidance": _times(batch)} if config["guidance_embeds"] else {}
    return {
        "hidden_states": _numbers(batch, shape.height * shape.width // 4, config["in_channels"]),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["joint_attention_dim"]),
        "encoder_hidden_states_mask": _ones(batch, shape.tokens),
        "img_shapes": [[(1, shape.height // 2, shape.width // 2)]] * batch,
        **guidance,
    }


def _z_image(config: Config, shape: Shape, batch: int) -> Arguments:
    return {
        "x": [_numbers(config["in_channels"], 1, shape.height, shape.width) for _ in range(batch)],
        "t": _times(batch),
        "cap_feats": [_numbers(shape.tokens, config["cap_feat_dim"]) for _ in range(batch)],
    }


def _pixart(config: Config, shape: Shape, batch: int) -> Arguments:
    sizes: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if config["sample_size"] == 128 and config["use_additional_conditions"] is not False:
        sizes = {"resolution": _numbers(batch, 2), "aspect_ratio": _numbers(batch, 1)}
    return {
        "hidden_states": _numbers(batch, config["in_channels"], shape.height, shape.width),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["caption_channels"]),
        "encoder_attention_mask": _ones(batch, shape.tokens),
        "added_cond_kwargs": sizes,
    }


def _sana(config: Config, shape: Shape, batch: int) -> Arguments:
    guidance = {"guidance": _times(batch)} if config["guidance_embeds"] else {}
    return {
        "hidden_states": _numbers(batch, config["in_channels"], shape.height, shape.width),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["caption_channels"]),
        "encoder_attention_mask": _ones(batch, shape.tokens),
        **guidance,
    }


def _wan(config: Config, shape: Shape, batch: int) -> Arguments:
    return {
        "hidden_states": _numbers(batch, config["in_channels"], shape.frames, shape.height, shape.width),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["text_dim"]),
    }


def _ltx(config: Config, shape: Shape, batch: int) -> Arguments:
    return {
        "hidden_states": _numbers(batch, shape.frames * shape.height * shape.width, config["in_channels"]),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["caption_channels"]),
        "encoder_attention_mask": _ones(batch, shape.tokens),
        "num_frames": shape.frames,
        "height": shape.height,
        "width": shape.width,
        "rope_interpolation_scale": (0.32, 32, 32),  # shapes do not depend on these numbers
    }


def _hunyuan(config: Config, shape: Shape, batch: int) -> Arguments:
    guidance = {"guidance": _times(batch)} if config["guidance_embeds"] else {}
    return {
        "hidden_states": _numbers(batch, config["in_channels"], shape.frames, shape.height, shape.width),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["text_embed_dim"]),
        "encoder_attention_mask": _ones(batch, shape.tokens),
        "pooled_projections": _numbers(batch, config["pooled_projection_dim"]),
        **guidance,
    }


def _cog(config: Config, shape: Shape, batch: int) -> Arguments:
    patch, patch_t = config["patch_size"], config["patch_size_t"] or 1
    frames = -(-shape.frames // patch_t) * patch_t  # padded to a multiple
    rotary = None
    if config["use_rotary_positional_embeddings"]:
        places = frames // patch_t * (shape.height // patch) * (shape.width // patch)
        rotary = (_numbers(places, config["attention_head_dim"]), _numbers(places, config["attention_head_dim"]))
    return {
        "hidden_states": _numbers(batch, frames, config["in_channels"], shape.height, shape.width),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["text_embed_dim"]),
        "image_rotary_emb": rotary,
    }


def _stable_audio(config: Config, shape: Shape, batch: int) -> Arguments:
    angles = _numbers(shape.width + 1, config["attention_head_dim"] // 2)
    return {
        "hidden_states": _numbers(batch, config["in_channels"], shape.width),
        "timestep": _times(batch),
        "encoder_hidden_states": _numbers(batch, shape.tokens, config["cross_attention_input_dim"]),
        "global_hidden_states": _numbers(batch, 1, config["global_states_input_dim"]),
        "rotary_embedding": (angles, angles),
    }


def _filled(*names: str) -> Callable[[Config], str]:
    """A function that lists the given fields of a config that are set."""
    return lambda config: ", ".join(f"{name} {str(config[name])[:40]}" for name in names if config.get(name))


_PACKED = {"side": lambda config: 128, "multiple": lambda config: 2}

INPUTS: Mapping[str, NetworkInputs] = {
    "UNet2DConditionModel": NetworkInputs(
        _unet,
        _image_blocks,
        multiple=lambda config: 2 ** (len(config["down_block_types"]) - 1),
        unknown=lambda config: ", ".join(NETWORKS["UNet2DConditionModel"].further(config)),
    ),
    "SD3Transformer2DModel": NetworkInputs(_sd3, _image_blocks, tokens=lambda longest, config: CLIP_TOKENS + longest),
    "FluxTransformer2DModel": NetworkInputs(_flux, _image_blocks, **_PACKED),
    "QwenImageTransformer2DModel": NetworkInputs(
        _qwen, _qwen_vae, **_PACKED, unknown=_filled("use_additional_t_cond", "use_layer3d_rope", "zero_cond_t")
    ),
    "ZImageTransformer2DModel": NetworkInputs(_z_image, _image_blocks, **_PACKED, unknown=_filled("siglip_feat_dim")),
    "PixArtTransformer2DModel": NetworkInputs(_pixart, _image_blocks),
    "SanaTransformer2DModel": NetworkInputs(_sana, _deep_blocks),
    "WanTransformer3DModel": NetworkInputs(
        _wan,
        _wan_vae,
        side=lambda config: None,
        frames=True,
        multiple=lambda config: max(config["patch_size"]),
        unknown=_filled("image_dim", "added_kv_proj_dim"),
    ),
    "LTXVideoTransformer3DModel": NetworkInputs(_ltx, _ltx_vae, side=lambda config: None, frames=True),
    "HunyuanVideoTransformer3DModel": NetworkInputs(
        _hunyuan, _hunyuan_vae, side=lambda config: None, frames=True, unknown=_filled("image_condition_type")
    ),
    "CogVideoXTransformer3DModel": NetworkInputs(
        _cog,
        _cog_vae,
        side=lambda config: (config["sample_height"], config["sample_width"]),
        frames=True,
        unknown=_filled("ofs_embed_dim"),
    ),
    "StableAudioDiTModel": NetworkInputs(
        _stable_audio, lambda vae: Compression(1), tokens=lambda longest, config: 128 + 2, fixed=True
    ),
}
"""Inputs by the network's class; the prompt of Stable Audio has 128 tokens of T5 and two numbers of seconds."""
