"""The parts of a diffusers folder, networks and autoencoders: read as untrusted, from configs and safetensors.

A pickle is never loaded. Before anything is built, the config's numbers must be of a size that networks have, and the
network that they describe must not be larger than the files that hold its weights.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel

from progdist._utils.errors import UserError
from progdist._utils.files import read_json

NETWORKS: dict[str, type[ModelMixin]] = {
    "UNet2DModel": UNet2DModel,
    "DiTTransformer2DModel": DiTTransformer2DModel,
    "Transformer2DModel": DiTTransformer2DModel,  # as older folders name it
}
"""Networks that can be distilled, by the name in model_index.json."""

AUTOENCODERS: dict[str, type[ModelMixin]] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
"""Autoencoders of latent models, by the name in model_index.json."""

WEIGHTS = "diffusion_pytorch_model"
"""How diffusers names its weight files."""

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")

LIMITS = {"sample_size": 1024, "layers_per_block": 256, "num_layers": 256}
"""The largest values of the numbers in a config that cost time or memory by themselves."""

MOST = 65_536
"""The largest of any other whole number in a config."""

Part = TypeVar("Part", bound=ModelMixin)


def load_component(folder: Path, part: str, component_class: type[Part]) -> Part:
    """One part of a folder with its weights, in float32 and evaluation mode.

    Args:
        folder: of the pipeline.
        part: its name in there, e.g. unet.
        component_class: its class.

    Raises:
        UserError: a file is missing, damaged, a pickle, or not what the config describes.
    """
    part_folder = folder / part
    if not (part_folder / "config.json").is_file():
        raise UserError(f"{folder} lacks {part}/config.json: restore the file, or save the pipeline again")
    config = read_json(part_folder / "config.json")
    variant = _variant(folder, part)
    _check_config_limits(config, part_folder)
    try:
        with _quiet():
            _check_weight_size(component_class, config, part_folder)
            network, info = cast(Any, component_class).from_pretrained(
                part_folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # diffusers checks few of a config's values: whatever comes of others is its damage
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{part_folder} is damaged ({reason}): restore it, or save the pipeline again") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[what]:
            raise UserError(
                f"{part_folder} is damaged ({what.replace('_', ' ')}: {str(next(iter(info[what])))[:100]}): restore "
                "it, or save the pipeline again"
            )
    return cast(Part, network.float().eval())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' own remarks: what matters of them is raised."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_weight_size(component_class: type[ModelMixin], config: Mapping[str, Any], part_folder: Path) -> None:
    """Refuse a network of more numbers than its weight files have bytes, before it is built."""
    with torch.device("meta"):
        described = cast(Any, component_class).from_config(config)
    count = sum(parameter.numel() for parameter in described.parameters())
    held = sum(path.stat().st_size for path in part_folder.glob("*.safetensors"))
    if count > held:
        raise UserError(f"{part_folder} describes {count:,} numbers, but its weights are {held:,} bytes: restore it")


def _variant(folder: Path, part: str) -> str | None:
    """Which of the weight files there are to take: None for the plain one, else e.g. fp16.

    Raises:
        UserError: there are none, they are pickles, or their index names files elsewhere.
    """
    part_folder = folder / part
    index = part_folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = set(read_json(index).get("weight_map", {}).values())
        wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        missing = [name for name in sorted(names - set(wrong)) if not (part_folder / name).is_file()]
        if wrong or missing or not names:
            what = f"names {str(wrong[0])[:80]!r}" if wrong else f"lacks {(missing or ['any weights'])[0]}"
            raise UserError(f"{index} {what}: restore it, or save the pipeline again")
        return None
    if (part_folder / f"{WEIGHTS}.safetensors").is_file():
        return None
    for path in sorted(part_folder.glob(f"{WEIGHTS}.*.safetensors")):
        return path.name.split(".")[1]
    for pattern in PICKLES:
        for path in sorted(part_folder.glob(pattern)):
            raise UserError(
                f"{path} is a pickle, which can run code and is never loaded: save the pipeline again with "
                "save_pretrained(folder, safe_serialization=True)"
            )
    raise UserError(f"{folder} lacks {part}/{WEIGHTS}.safetensors: restore the file, or save the pipeline again")


def _check_config_limits(config: Mapping[str, Any], part_folder: Path) -> None:
    """Refuse numbers that no network has, before memory is spent on them."""
    for name, value in config.items():
        values = value if isinstance(value, list) else [value]
        if len(values) > 64:
            raise UserError(
                f"{part_folder}/config.json: {name} holds {len(values)} values, expected at most 64: restore it"
            )
        for number in values:
            if isinstance(number, int) and not 0 <= number <= LIMITS.get(name, MOST):
                raise UserError(
                    f"{part_folder}/config.json: {name} is {number}, expected at most {LIMITS.get(name, MOST)}: "
                    "restore it"
                )
