"""LoRA files of tiny pipelines with random numbers, written by stock code."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

ATTENTION = ("to_q", "to_v", "to_out.0")
ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")


def adapter(network: nn.Module, layers: Sequence[str], seed: int, rank: int = 2) -> dict[str, Tensor]:
    """A and B of random numbers of some layers of a network, which they are added to."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), init_lora_weights=False)
    network_with: Any = network
    network_with.add_adapter(config)
    return {name: 0.3 * tensor for name, tensor in get_peft_model_state_dict(network).items()}


def weights(place: Path, seed: int = 0, *, encoder: bool = True) -> dict[str, Tensor]:
    """Those of the network of the pipeline in a folder, and of its first text encoder, as diffusers names them."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place)
    part = "unet" if "unet" in pipeline.components else "transformer"
    found = {f"{part}.{name}": each for name, each in adapter(getattr(pipeline, part), ATTENTION, seed).items()}
    if encoder:
        layers = adapter(pipeline.components["text_encoder"], ENCODER, seed + 1)
        found |= {f"text_encoder.{name}": each for name, each in layers.items()}
    return found


def kohya(tensors: Mapping[str, Tensor], alpha: float = 1.0) -> dict[str, Tensor]:
    """The same in the names of kohya's scripts, of which text encoders are `lora_te_text_model_...`."""
    flat = convert_state_dict_to_kohya(dict(tensors))
    named = {name.replace("lora_te1_encoder", "lora_te_text_model_encoder"): each for name, each in flat.items()}
    return {
        name: torch.tensor(alpha) if name.endswith(".alpha") else each.contiguous().clone()
        for name, each in named.items()
    }


def write(tensors: Mapping[str, Tensor], file: Path) -> Path:
    """A safetensors file of tensors."""
    safetensors.torch.save_file({name: each.contiguous() for name, each in tensors.items()}, file)
    return file
