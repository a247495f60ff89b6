"""The parts of a diffusers folder, networks and autoencoders: read as untrusted, from configs and safetensors.

A pickle is never loaded. Before anything is built, the config's numbers must have plausible sizes. The network is first
built without memory, and must not be larger than its weight files. Weights that are not finite are refused.
"""

import logging
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.utils import logging as progress
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from progdist._utils.errors import UserError
from progdist._utils.files import PICKLES, check_tensors_finite, read_json
from progdist.models.autoencoder import Autoencoder
from progdist.models.networks import NETWORKS

AUTOENCODERS: dict[str, type[ModelMixin]] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
"""Autoencoders of latent models, by the name in model_index.json."""

WEIGHTS = "diffusion_pytorch_model"  # diffusers' name of weight files
NOT_WEIGHTS = "embeddings.position_ids"
"""Suffixes of the counts 0, 1, 2 ... that text encoders of early versions kept among their weights."""

PICKLE_FILES = tuple(f"*{suffix}" for suffix in PICKLES)
LIMITS = {"sample_size": 1024, "pos_embed_max_size": 1024, "layers_per_block": 256, "num_layers": 256}
"""The largest values of the numbers in a config that cost time or memory by themselves."""

MOST = 65_536  # the largest value of any other integer in a config
TOKENS = (
    *("_id", "_ids", "_token_index", "vocab_size", "max_position_embeddings", "theta", "sliding_window", "_length"),
    "_seq_len",
)
"""Suffixes of numbers that count tokens, or are a token's number: in text encoders they are large."""

MOST_TOKENS = 2**24
MOST_VALUES, DEEPEST = 64, 4  # values of a list in a config, and the depth of nested lists and objects
COMPUTED = 2**26  # numbers that a network may hold in addition to its files, e.g. tables of positions
Part = TypeVar("Part", bound=nn.Module)
Describe = Callable[[Mapping[str, Any]], nn.Module]


@dataclass(frozen=True)
class WeightFiles:
    """The files of a part's weights."""

    folder: Path  # of the part
    files: tuple[Path, ...]
    variant: str | None = None  # in the name of a single file, e.g. fp16; None for none
    index: Path | None = None  # which file holds which weights, if there are several

    @property
    def size(self) -> int:
        """The size in bytes."""
        return sum(file.stat().st_size for file in self.files)


def network_class(part_folder: Path, name: str | None = None) -> type[ModelMixin]:
    """The class, one of NETWORKS, of the network in a folder `unet` or `transformer`, by its config or its name."""
    file = part_folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    default = "DiTTransformer2DModel" if part_folder.name == "transformer" else "UNet2DModel"
    name = name or str(config.get("_class_name", default))
    if name == "Transformer2DModel":  # its name in older folders
        return DiTTransformer2DModel
    if name not in NETWORKS:
        raise UserError(f"{part_folder} is a {name[:50]}, expected one of {', '.join(NETWORKS)}")
    return NETWORKS[name].network


def load_component(
    folder: Path, part: str, component_class: type[Part], *, weights: str = WEIGHTS, describe: Describe | None = None
) -> Part:
    """Load one part of a pipeline's folder, e.g. unet, with its weights, in float32 and evaluation mode.

    Its class has the `from_pretrained` of diffusers or transformers; `weights` is the name of its weight files, and
    `describe` makes a part from a config, without weights, by default with diffusers' `from_config`.

    Raises:
        UserError: a file is missing, damaged, a pickle, or does not match the config.
    """
    part_folder = folder / part
    if not (part_folder / "config.json").is_file():
        raise UserError(f"{folder} lacks {part}/config.json: restore the file, or save the pipeline again")
    config = read_json(part_folder / "config.json")
    held = _weight_files(folder, part, weights)
    check_config_limits(config, part_folder)
    fixed = bool(getattr(component_class, "_keep_in_fp32_modules", None))  # diffusers then fills an empty network
    eager = {} if describe or fixed else {"low_cpu_mem_usage": False}
    try:
        with quiet(), _plainly_named(held, weights) as source:
            _check_weight_size(describe or cast(Any, component_class).from_config, config, held)
            network, info = cast(Any, component_class).from_pretrained(
                source,
                variant=held.variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **eager,
            )
    except UserError:
        raise
    except Exception as error:  # diffusers checks few config values: any other error means damage
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{part_folder} is damaged ({reason}): restore it, or save the pipeline again") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if keys := [str(each) for each in info[what] if not str(each).endswith(NOT_WEIGHTS)]:
            raise UserError(
                f"{part_folder} is damaged ({what.replace('_', ' ')}: {keys[0][:100]}): restore it, or save the "
                "pipeline again"
            )
    network = cast(Part, network.float().eval())
    check_tensors_finite(network.state_dict(), part_folder)
    return network


def check_described(component_class: type[nn.Module], part_folder: Path, file: Path, describe: Describe) -> None:
    """Refuse a config that describes more than a file can hold; errors of the class are raised as they are."""
    if not (part_folder / "config.json").is_file():
        raise UserError(f"{part_folder} lacks config.json, the config of a {component_class.__name__}: restore it")
    config = read_json(part_folder / "config.json")
    check_config_limits(config, part_folder)
    with quiet():
        _check_weight_size(describe, config, WeightFiles(part_folder, (file,)))


def read_autoencoder(folder: Path) -> Autoencoder | None:
    """The autoencoder of a latent model's folder, or None. Raise a UserError if it is damaged or unknown."""
    for part in ("vae", "vqvae"):
        if (folder / part).is_dir():
            config = folder / part / "config.json"
            name = str(read_json(config).get("_class_name"))[:50] if config.is_file() else "AutoencoderKL"
            if name not in AUTOENCODERS:
                raise UserError(f"{folder / part} is a {name}, expected one of {', '.join(AUTOENCODERS)}")
            network = cast(Any, load_component(folder, part, AUTOENCODERS[name])).requires_grad_(False)
            _check_latent_numbers(network.config, config)
            return Autoencoder(network, part)
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and remarks of diffusers and transformers; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    shown = [progress, *([sys.modules["transformers"].utils.logging] if "transformers" in sys.modules else [])]
    before, bars = [logger.level for logger in loggers], [each.is_progress_bar_enabled() for each in shown]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, enabled in zip(shown, bars, strict=True):
            if enabled:
                each.enable_progress_bar()
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check_latent_numbers(config: Mapping[str, Any], file: Path) -> None:
    """Refuse an invalid scale or shift of latents."""
    channels, named = config["latent_channels"], {name: config.get(name) for name in ("latents_mean", "latents_std")}
    for name in ("scaling_factor", "shift_factor"):
        number = config.get(name)
        optional = number is None and name == "shift_factor"
        if not optional and (not _is_number(number) or (name == "scaling_factor" and number == 0)):
            raise UserError(f"{file}: {name} is {str(number)[:50]!r}, expected a number: restore it")
    for name, values in named.items():
        if values is not None and not (
            isinstance(values, list | tuple) and len(values) == channels and all(map(_is_number, values))
        ):
            raise UserError(f"{file}: {name} is {str(values)[:50]!r}, expected {channels} numbers: restore it")
    if (named["latents_mean"] is None) != (named["latents_std"] is None):
        raise UserError(f"{file} has one of latents_mean and latents_std, expected both or neither: restore it")
    if named["latents_std"] is not None and min(named["latents_std"]) <= 0:
        raise UserError(
            f"{file}: latents_std is {str(named['latents_std'])[:50]}, expected positive numbers: restore it"
        )
    if named["latents_mean"] is not None and config.get("shift_factor"):
        raise UserError(f"{file} has latents_mean and shift_factor, expected one of them: restore it")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_weight_size(describe: Describe, config: Mapping[str, Any], held: WeightFiles) -> None:
    """Refuse, before it is built, a network with more numbers than its weight files have bytes, or more tensors.

    It is described without memory, and only until it is too large.
    """
    budget = _Budget(held, _tensor_count(held))
    hooks = (
        register_module_parameter_registration_hook(budget.parameter),
        register_module_buffer_registration_hook(budget.buffer),
    )
    try:
        with torch.device("meta"):
            describe(config)
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _Budget:
    """The limits of a network, counted while it is described."""

    held: WeightFiles
    most_tensors: int | None  # in the files; None if unknown
    numbers: int = 0  # in its parameters
    tensors: int = 0
    computed: int = 0  # numbers in its buffers

    def parameter(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        """Count one more parameter."""
        self.numbers += value.numel() if value is not None else 0
        self.tensors += 1
        folder, size = self.held.folder, self.held.size
        if self.numbers > size:
            raise UserError(
                f"{folder} describes {self.numbers:,} numbers or more, but its weights are {size:,} bytes: restore it"
            )
        if self.most_tensors is not None and self.tensors > 2 * self.most_tensors + 100:  # some are tied
            raise UserError(f"{folder} describes more than its {self.most_tensors:,} tensors of weights: restore it")

    def buffer(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        """Count one more buffer."""
        self.computed += value.numel() if value is not None else 0
        if self.computed > (most := self.held.size + COMPUTED):
            raise UserError(
                f"{self.held.folder} describes tables of {self.computed:,} numbers or more, expected at most {most:,}: "
                "restore it"
            )


def _tensor_count(held: WeightFiles) -> int | None:
    """The number of tensors in the files; None if one is damaged."""
    try:
        total = 0
        for file in held.files:
            with safetensors.safe_open(file, "pt") as opened:
                total += len(opened.keys())
        return total
    except (OSError, safetensors.SafetensorError):
        return None


@contextmanager
def _plainly_named(held: WeightFiles, weights: str) -> Iterator[Path]:
    """The part's folder, or one of links in which an index has the name that the libraries expect.

    The index of a variant in several files has had three names: with its variant before or after `safetensors`, or
    before `json`.
    `json`.
    """
    plain = f"{weights}.safetensors.index.json"
    if held.index is None or held.index.name == plain:
        yield held.folder
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in (*held.files, *held.folder.glob("*.json")):
            if ".index." not in file.name:
                (Path(folder) / file.name).symlink_to(file.resolve())
        (Path(folder) / plain).symlink_to(held.index.resolve())
        yield Path(folder)


def _weight_files(folder: Path, part: str, weights: str) -> WeightFiles:
    """Select the weight files: the plain ones, else those of a variant. Raise a UserError for pickles, or none."""
    part_folder = folder / part
    names = sorted(path.name for path in part_folder.iterdir() if path.is_file())
    plain, index = f"{weights}.safetensors", f"{weights}.safetensors.index.json"
    stem = re.escape(weights)
    indices = re.compile(rf"{stem}(\.[^.]+)?\.safetensors(\.[^.]+)?\.index(\.[^.]+)?\.json")
    variants = re.compile(rf"{stem}\.(?P<variant>[^.]+?)(?<!-of-\d{{5}})\.safetensors")
    if plain in names and index not in names:
        return WeightFiles(part_folder, (part_folder / plain,))
    for name in sorted(filter(indices.fullmatch, names), key=lambda name: name != index):
        return WeightFiles(part_folder, _indexed(part_folder / name), index=part_folder / name)
    for match in filter(None, map(variants.fullmatch, names)):
        return WeightFiles(part_folder, (part_folder / match[0],), match["variant"])
    for pattern in PICKLE_FILES:
        for path in sorted(part_folder.glob(pattern)):
            raise UserError(
                f"{path} is a pickle, which can run code and is never loaded: save the pipeline again with "
                "save_pretrained(folder, safe_serialization=True)"
            )
    raise UserError(f"{folder} lacks {part}/{weights}.safetensors: restore the file, or save the pipeline again")


def _indexed(index: Path) -> tuple[Path, ...]:
    """The files that an index names, all in its folder. Raise a UserError if any is missing or elsewhere."""
    places = read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    wrong = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    missing = [name for name in names if name not in wrong and not (index.parent / name).is_file()]
    if wrong or missing or not names:
        what = f"names {wrong[0][:80]!r}" if wrong else f"lacks {(missing or ['any weights'])[0][:80]}"
        raise UserError(f"{index} {what}: restore it, or save the pipeline again")
    return tuple(index.parent / name for name in names)


def check_config_limits(config: Mapping[str, Any], part_folder: Path) -> None:
    """Refuse implausible numbers before memory is spent on them."""
    for name, value in config.items():
        _check_value(value, _limit(name), f"{part_folder}/config.json: {name[:50]}")


def _limit(name: str) -> int:
    """The largest value of a number in a config, by its name."""
    if name.endswith(TOKENS):
        return MOST_TOKENS
    return LIMITS.get(name, LIMITS["num_layers"] if "layers" in name else MOST)


def _check_value(value: object, limit: int, what: str, depth: int = 0) -> None:
    if isinstance(value, list | dict):
        if depth == DEEPEST or (isinstance(value, list) and len(value) > MOST_VALUES):
            expected = f"at most {MOST_VALUES}, {DEEPEST} deep"
            raise UserError(f"{what} holds {len(value)} values, expected {expected}: restore it")
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            inner = max(limit, _limit(name)) if isinstance(name, str) else limit
            _check_value(each, inner, what, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least = -limit if isinstance(value, float) or what.endswith("_layer") else 0  # layers may count from the end
        wrong = not least <= value <= limit
        if wrong:
            raise UserError(f"{what} is {str(value)[:50]}, expected at most {limit}: restore it")


def nearest_models(folder: Path) -> str:
    """The model folders within or next to a folder that is not one, e.g. a run; else what is expected."""
    for place in (folder, folder.parent):
        if folders := sorted(str(path.parent) for path in place.glob("*/progdist.json")):
            return f"one of {', '.join(folders[:6])}"
    return "a folder that progdist wrote"
