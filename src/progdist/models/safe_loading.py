"""The parts of a diffusers folder, networks and autoencoders: read as untrusted, from configs and safetensors.

A pickle is never loaded. Before anything is built, the config's numbers must be of a size that networks have, and the
network that they describe must not be larger than the files that hold its weights.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist.models.autoencoder import Autoencoder
from progdist.models.networks import NETWORKS

AUTOENCODERS: dict[str, type[ModelMixin]] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
"""Autoencoders of latent models, by the name in model_index.json."""

WEIGHTS = "diffusion_pytorch_model"  # how diffusers names its weight files
NOT_WEIGHTS = "embeddings.position_ids"
"""How the name ends of the counts 0, 1, 2 ... that text encoders of early versions kept among their weights."""

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
LIMITS = {"sample_size": 1024, "layers_per_block": 256, "num_layers": 256}
"""The largest values of the numbers in a config that cost time or memory by themselves."""

MOST = 65_536  # the largest of any other whole number in a config
Part = TypeVar("Part", bound=nn.Module)
Describe = Callable[[Mapping[str, Any]], nn.Module]


def network_class(part_folder: Path, name: str | None = None) -> type[ModelMixin]:
    """The class, one of NETWORKS, of the network in a folder `unet` or `transformer`, by its config or its name."""
    file = part_folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    default = "DiTTransformer2DModel" if part_folder.name == "transformer" else "UNet2DModel"
    name = name or config.get("_class_name", default)
    if name == "Transformer2DModel":  # as older folders name it
        return PixArtTransformer2DModel if config.get("norm_type") == "ada_norm_single" else DiTTransformer2DModel
    if name not in NETWORKS:
        raise UserError(f"{part_folder} is a {str(name)[:50]}: expected one of {', '.join(NETWORKS)}")
    return NETWORKS[name].network


def load_component(
    folder: Path, part: str, component_class: type[Part], *, weights: str = WEIGHTS, describe: Describe | None = None
) -> Part:
    """One part of a pipeline's folder, e.g. unet, with its weights, in float32 and evaluation mode.

    Its class has the `from_pretrained` of diffusers or transformers; `weights` is what its weight files are called, and
    `describe` makes a part of a config, without weights, by default as diffusers' `from_config`.

    Raises:
        UserError: a file is missing, damaged, a pickle, or not what the config describes.
    """
    part_folder = folder / part
    if not (part_folder / "config.json").is_file():
        raise UserError(f"{folder} lacks {part}/config.json: restore the file, or save the pipeline again")
    config = read_json(part_folder / "config.json")
    variant = _variant(folder, part, weights)
    _check_config_limits(config, part_folder)
    eager = {} if describe else {"low_cpu_mem_usage": False}  # as diffusers takes it
    try:
        with quiet():
            _check_weight_size(describe or cast(Any, component_class).from_config, config, part_folder)
            network, info = cast(Any, component_class).from_pretrained(
                part_folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **eager,
            )
    except UserError:
        raise
    except Exception as error:  # diffusers checks few of a config's values: whatever comes of others is its damage
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{part_folder} is damaged ({reason}): restore it, or save the pipeline again") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if keys := [str(each) for each in info[what] if not str(each).endswith(NOT_WEIGHTS)]:
            raise UserError(
                f"{part_folder} is damaged ({what.replace('_', ' ')}: {keys[0][:100]}): restore it, or save the "
                "pipeline again"
            )
    return cast(Part, network.float().eval())


def read_autoencoder(folder: Path) -> Autoencoder | None:
    """The autoencoder of a latent model's folder, None where there is none; a UserError if it is damaged or unknown."""
    for part in ("vae", "vqvae"):
        if (folder / part).is_dir():
            config = folder / part / "config.json"
            name = read_json(config).get("_class_name") if config.is_file() else "AutoencoderKL"
            if name not in AUTOENCODERS:
                raise UserError(f"{folder / part} is a {name}: expected one of {', '.join(AUTOENCODERS)}")
            network = cast(Any, load_component(folder, part, AUTOENCODERS[name])).requires_grad_(False)
            for key in ("scaling_factor", "shift_factor"):
                number = network.config.get(key) or 0.0
                if not isinstance(number, int | float) or not math.isfinite(number):
                    raise UserError(f"{config}: {key} is {str(number)[:50]!r}, expected a number: restore it")
            return Autoencoder(network, part)
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without diffusers' and transformers' own remarks: what matters of them is raised."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check_weight_size(describe: Describe, config: Mapping[str, Any], part_folder: Path) -> None:
    """Refuse a network of more numbers than its weight files have bytes, before it is built."""
    with torch.device("meta"):
        described = describe(config)
    count = sum(parameter.numel() for parameter in described.parameters())
    held = sum(path.stat().st_size for path in part_folder.glob("*.safetensors"))
    if count > held:
        raise UserError(f"{part_folder} describes {count:,} numbers, but its weights are {held:,} bytes: restore it")


def _variant(folder: Path, part: str, weights: str) -> str | None:
    """Which weight files to take: None for the plain ones, else e.g. fp16; a UserError for pickles, or none."""
    part_folder = folder / part
    index = part_folder / f"{weights}.safetensors.index.json"
    if index.is_file():
        names = set(read_json(index).get("weight_map", {}).values())
        wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        missing = [name for name in sorted(names - set(wrong)) if not (part_folder / name).is_file()]
        if wrong or missing or not names:
            what = f"names {str(wrong[0])[:80]!r}" if wrong else f"lacks {(missing or ['any weights'])[0]}"
            raise UserError(f"{index} {what}: restore it, or save the pipeline again")
        return None
    if (part_folder / f"{weights}.safetensors").is_file():
        return None
    for path in sorted(part_folder.glob(f"{weights}.*.safetensors")):
        return path.name.split(".")[1]
    for pattern in PICKLES:
        for path in sorted(part_folder.glob(pattern)):
            raise UserError(
                f"{path} is a pickle, which can run code and is never loaded: save the pipeline again with "
                "save_pretrained(folder, safe_serialization=True)"
            )
    raise UserError(f"{folder} lacks {part}/{weights}.safetensors: restore the file, or save the pipeline again")


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


def nearest_models(folder: Path) -> str:
    """The model folders in a folder that holds none itself, e.g. a run, or beside it; else what is expected."""
    for place in (folder, folder.parent):
        if folders := sorted(str(path.parent) for path in place.glob("*/progdist.json")):
            return f"one of {', '.join(folders[:6])}"
    return "a folder that progdist wrote"
