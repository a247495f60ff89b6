"""A text-to-image pipeline's weights under their original names (the code it was first published with).

    model.diffusion_model.                      the U-Net
    first_stage_model.                          the autoencoder; q, k, v and output of its attention are convolutions
    cond_stage_model.transformer.text_model.    the text encoder of Stable Diffusion 1
    cond_stage_model.model.                     that of Stable Diffusion 2, OpenCLIP's, where q, k and v are one matrix
    conditioner.embedders.0.transformer.text_model., conditioner.embedders.1.model.        both of SDXL

These are the layouts of CompVis' latent-diffusion and Stability AI's generative-models, which ComfyUI, Forge, A1111 and
InvokeAI read. diffusers only reads them (`diffusers.loaders.single_file_utils`). Every tensor is named here, read back
by diffusers' own functions, and compared: a difference is an error, and no file is written.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

import diffusers
import torch
from diffusers.loaders import single_file_utils as reader
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.students.lora_formats import sgm

NETWORK, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
OPEN_CLIP_WIDTH = 1024
"""Width of the text embedding of Stable Diffusion 2, by which programs recognize it."""

TEXT = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
"""OpenCLIP's names outside its blocks."""

BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""OpenCLIP's names in a block."""

QKV = tuple(f"self_attn.{part}_proj" for part in "qkv")

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""The supported pipelines."""

Weights = Mapping[str, Tensor]


def original_layout(pipeline: str, parts: Mapping[str, nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a pipeline under their original names.

    Args:
        pipeline: the name of its class.
        parts: its U-Net, autoencoder and text encoders by their names in diffusers.
        dtype: type of all floating-point tensors.

    Raises:
        UserError: the layout does not support the pipeline, a part is missing, a weight has no name in it, or a
            number exceeds the type.
    """
    check_pipeline(pipeline)
    encoders = ["text_encoder", "text_encoder_2"] if pipeline == "StableDiffusionXLPipeline" else ["text_encoder"]
    if missing := [name for name in ("unet", "vae", *encoders) if name not in parts]:
        raise UserError(f"--single-file requires {missing[0]}, which this {pipeline} does not have")
    cast_parts = {name: _cast(name, parts[name], dtype) for name in ("unet", "vae", *encoders)}
    written = _network(cast(Any, parts["unet"]), cast_parts["unet"])
    written |= _autoencoder(cast(Any, parts["vae"]), cast_parts["vae"])
    if len(encoders) == 2:
        written |= _both_encoders(parts, cast_parts)
    elif cast(Any, parts["unet"]).config.cross_attention_dim == OPEN_CLIP_WIDTH:
        written |= _open_clip(parts["text_encoder"], cast_parts["text_encoder"], "cond_stage_model.model.")
    else:
        written |= _clip(cast_parts["text_encoder"], "cond_stage_model.transformer.")
    return {name: tensor.contiguous() for name, tensor in written.items()}


def check_pipeline(pipeline: str | None) -> None:
    """Refuse an unsupported pipeline."""
    if pipeline not in PIPELINES:
        raise UserError(
            f"--single-file does not support {pipeline or 'a model without a text-to-image pipeline'}: expected "
            f"{' or '.join(PIPELINES)}; for any other use the student's folder"
        )


def _cast(part: str, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert the weights of a part to a type; a UserError for a number that exceeds it."""
    weights = {}
    for name, tensor in module.state_dict().items():
        weights[name] = tensor.detach().cpu().to(dtype) if tensor.is_floating_point() else tensor.detach().cpu()
        if tensor.is_floating_point() and not bool(weights[name].isfinite().all()):
            raise UserError(f"{part}.{name} has numbers beyond {str(dtype).removeprefix('torch.')}: use --dtype bf16")
    return weights


def _network(network: Any, weights: Weights) -> dict[str, Tensor]:  # noqa: ANN401
    if "time_embedding.cond_proj.weight" in weights:
        raise UserError(
            "--single-file does not support a guidance input, which the original layout cannot hold: distil one "
            "scale, e.g. --guidance 3"
        )
    layers = sgm(sorted({name.rpartition(".")[0] for name in weights}))
    named = {name: f"{NETWORK}{layers[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" for name in weights}
    written = {named[name]: tensor for name, tensor in weights.items()}
    _check("unet", weights, reader.convert_ldm_unet_checkpoint(dict(written), network.config))
    return written


def _autoencoder(network: Any, weights: Weights) -> dict[str, Tensor]:  # noqa: ANN401
    blocks, written = len(network.config.block_out_channels), dict[str, Tensor]()
    for name, tensor in weights.items():
        original = _autoencoder_name(name, blocks)
        convolution = ".attn_1." in original and original.endswith(".weight") and tensor.ndim == 2
        written[AUTOENCODER + original] = tensor[:, :, None, None] if convolution else tensor
    _check("vae", weights, reader.convert_ldm_vae_checkpoint(dict(written), network.config))
    return written


PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}


def _autoencoder_name(name: str, blocks: int) -> str:
    """The original name of a weight: decoder blocks count from the output, middle blocks from 1."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.fullmatch(r"(en|de)coder\.mid_block\.resnets\.(\d+)\.(.+)", name):
        return f"{match[1]}coder.mid.block_{int(match[2]) + 1}.{match[3]}"
    if match := re.fullmatch(r"(en|de)coder\.mid_block\.attentions\.0\.(.+)\.(\w+)", name):
        return f"{match[1]}coder.mid.attn_1.{PROJECTIONS.get(match[2], match[2])}.{match[3]}"
    if match := re.fullmatch(
        r"(en|de)coder\.(down|up)_blocks\.(\d+)\.(resnets|(?:down|up)samplers)\.(\d+)\.(.+)", name
    ):
        side, way, number, kind, index, rest = match.groups()
        place = f"{side}coder.{way}.{number if way == 'down' else blocks - 1 - int(number)}"
        return f"{place}.block.{index}.{rest}" if kind == "resnets" else f"{place}.{way}sample.{rest}"
    return name


def _both_encoders(parts: Mapping[str, nn.Module], weights: Mapping[str, Weights]) -> dict[str, Tensor]:
    """The text encoders of SDXL, which its readers distinguish by width."""
    widths = [cast(Any, parts[name]).config.hidden_size for name in ("text_encoder", "text_encoder_2")]
    if widths[0] == widths[1]:
        raise UserError(
            f"--single-file requires text encoders of different widths, by which readers of SDXL distinguish them, got "
            f"{widths[0]} twice: use the student's folder"
        )
    first = _clip(weights["text_encoder"], "conditioner.embedders.0.transformer.")
    return first | _open_clip(parts["text_encoder_2"], weights["text_encoder_2"], "conditioner.embedders.1.model.")


def _clip(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """CLIP's own names; transformers omits `text_model.` in some of its classes."""
    written = {f"{prefix}text_model.{_bare(name)}": tensor for name, tensor in weights.items()}
    _check("text_encoder", weights, reader.convert_ldm_clip_checkpoint(dict(written)))
    return written


def _open_clip(encoder: nn.Module, weights: Weights, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's names: q, k and v are the rows of one matrix, and the projection of the pooled text is transposed."""
    whole = {name if name.startswith("text_projection") else f"text_model.{_bare(name)}": name for name in weights}
    written: dict[str, Tensor] = {}
    for name, given in whole.items():
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "text_projection.weight":
            written["text_projection"] = weights[given].T
        elif match is None:
            written[TEXT.get(name, name)] = weights[given]
        elif match[2] == QKV[0]:
            own = [weights[given.replace(QKV[0], part)] for part in QKV]
            written[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(own)
        elif match[2] not in QKV:
            written[f"transformer.resblocks.{match[1]}.{BLOCK.get(match[2], match[2])}.{match[3]}"] = weights[given]
    prefixed = {prefix + name: tensor for name, tensor in written.items()}
    _check("text_encoder", weights, reader.convert_open_clip_checkpoint(encoder, prefixed, prefix=prefix))
    return prefixed


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def _check(part: str, weights: Weights, read: Weights) -> None:
    """Compare the weights that diffusers reads back with a part's own; a UserError names the first that differs."""
    found = {_bare(name): tensor for name, tensor in read.items()}
    for name, tensor in weights.items():
        again = found.pop(_bare(name), None)
        if again is None or again.shape != tensor.shape or not torch.equal(again, tensor):
            raise UserError(
                f"--single-file: {part}.{name} has no place in the original layout, as diffusers "
                f"{diffusers.__version__} reads it: use the student's folder"
            )
    if found:
        raise UserError(f"--single-file: diffusers reads {part}.{min(found)}, which the student does not have")
