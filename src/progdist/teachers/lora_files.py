"""Fuse LoRA files into a stock pipeline with its own loader, accounting for every tensor.

    load_lora_weights      converts the file's names (diffusers, peft, kohya, ...) and adds an adapter to every layer
    set_adapters           gives each file its weight
    fuse_lora              W' = W + sum_k weight_k scale_k B_k A_k
    unload_lora_weights    leaves plain layers

A loader skips what it does not know, at most with a warning. So three things are checked for every file:

- the converted weights depend on each of its tensors (a tensor without a gradient was dropped);
- they depend on each of its alphas, numbers that scale a layer (other alphas give other results);
- each converted tensor is found in an adapter of the network or of a text encoder, with the same numbers.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor, nn

from progdist._utils.digest import digest
from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist._utils.files import check_tensors_finite, local_path, read_tensors
from progdist._utils.lora_files import LoraFile
from progdist.models.safe_loading import quiet

Convert = Callable[[dict[str, Tensor]], Sequence[Any]]
SHOWN = 3  # unused names listed in a message


def fuse(pipeline: Any, files: Sequence[LoraFile]) -> list[str]:  # noqa: ANN401  (a pipeline of diffusers)
    """Fuse LoRA files into a pipeline's network and text encoders; return the parts that have changed.

    Raises:
        UserError: peft is not installed, the pipeline does not support LoRA, or a file is missing, damaged, for another
            pipeline, or has an unused tensor.
    """
    import_extra("peft", "lora", "a LoRA file")
    if not isinstance(pipeline, LoraBaseMixin):
        raise UserError(f"a {type(pipeline).__name__} does not support LoRA files: remove --with-lora")
    parts = [name for name in pipeline._lora_loadable_modules if isinstance(getattr(pipeline, name, None), nn.Module)]
    names = {name: set(getattr(pipeline, name).state_dict()) for name in parts}
    adapters = [f"file_{number}" for number in range(len(files))]
    for adapter, file in zip(adapters, files, strict=True):
        _load(pipeline, file, adapter, parts)
    changed = [name for name in parts if _adapter_config(getattr(pipeline, name))]
    with torch.no_grad(), _explained(pipeline, " and ".join(file.path for file in files)), quiet():
        pipeline.set_adapters(adapters, [file.weight for file in files])
        pipeline.fuse_lora(components=changed, adapter_names=adapters)
        pipeline.unload_lora_weights()
    for name in changed:
        if set(getattr(pipeline, name).state_dict()) != names[name]:
            raise UserError(f"{files[0].path} changes more than the weights of {name}: give a plain LoRA file")
    return changed


def _load(pipeline: Any, file: LoraFile, adapter: str, parts: Sequence[str]) -> None:  # noqa: ANN401
    """Add a file's adapter, and check that all of the file is in it."""
    path, convert = local_path(file.path), pipeline.lora_state_dict
    if not path.is_file():
        raise UserError(f"{path} is not a file, expected LoRA weights: give FILE.safetensors[:weight]")
    weights = read_tensors(path)
    check_tensors_finite(weights, path)
    seen: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def converted(source: Any, **options: Any) -> Any:  # noqa: ANN401
        result = convert(source, **options)
        seen.append((options, dict(result[0])))
        return result

    pipeline.lora_state_dict = converted
    try:
        with _explained(pipeline, str(path)), quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # about a second adapter
            options = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
            pipeline.load_lora_weights(str(path.parent), adapter_name=adapter, **options)
            how, loaded = seen[-1]
            again = partial(convert, **how)
            left = [*_unread(again, weights), *_unread_alphas(again, weights)]
            arrived = _arrived(pipeline, adapter, parts)
            left += _not_arrived(again, weights, loaded, arrived)
    finally:
        del pipeline.lora_state_dict
    if left:
        listed = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
        raise UserError(
            f"{path}: a {type(pipeline).__name__} does not use {len(left)} of its {len(weights)} tensors ({listed}): "
            "give a LoRA file for this pipeline, or remove the unused tensors"
        )
    if more := arrived.total():
        raise UserError(f"{path} is damaged (its layers lack {more} tensors): restore it, or save it again")


@torch.enable_grad()
def _unread(convert: Convert, weights: Mapping[str, Tensor]) -> list[str]:
    """The tensors of a file on which nothing converted depends, except alphas."""
    tensors = [name for name in weights if not _is_alpha(name, weights[name])]
    begins = _traced({name: weights[name] for name in tensors})
    found = _floats(convert({**weights, **{name: each * 1 for name, each in begins.items()}})[0])
    gradients = _gradients(sum((each.sum() for each in found.values()), torch.zeros(())), begins)
    return [name for name in tensors if gradients.get(name) is None]


def _unread_alphas(convert: Convert, weights: Mapping[str, Tensor]) -> list[str]:
    """The alphas of a file, if changing them changes fewer converted values than there are alphas."""
    alphas = [name for name in weights if _is_alpha(name, weights[name])]
    if not alphas:
        return []
    other = {name: tensor + 1 if name in set(alphas) else tensor.clone() for name, tensor in weights.items()}
    before, after = (_numbers(convert(each)) for each in ({k: t.clone() for k, t in weights.items()}, other))
    changed = sum(name not in before or not torch.equal(before[name], after[name]) for name in after)
    return [] if changed >= len(alphas) else alphas


@torch.enable_grad()
def _not_arrived(
    convert: Convert, weights: Mapping[str, Tensor], loaded: Mapping[str, Tensor], arrived: Counter[str]
) -> list[str]:
    """The tensors whose converted values are in no adapter; those that are in one are removed from `arrived`."""
    missing = []
    for name, tensor in loaded.items():
        key = _content(tensor)
        if arrived[key] > 0:
            arrived[key] -= 1
        else:
            missing.append(name)
    if not missing:
        return []
    begins = _traced(weights)
    found = convert({name: each * 1 for name, each in begins.items()})[0]
    origins: dict[str, None] = {}
    for name in missing:
        of = _gradients(found[name].sum(), begins) if isinstance(found.get(name), Tensor) else {}
        origins |= dict.fromkeys([each for each, gradient in of.items() if gradient is not None] or [name])
    return list(origins)


def _arrived(pipeline: Any, adapter: str, parts: Sequence[str]) -> Counter[str]:  # noqa: ANN401
    """The contents of an adapter's tensors, in all parts."""
    peft = import_extra("peft", "lora", "a LoRA file")
    found: Counter[str] = Counter()
    for name in parts:
        part = getattr(pipeline, name)
        if adapter in _adapter_config(part):
            for tensor in peft.get_peft_model_state_dict(part, adapter_name=adapter).values():
                found[_content(tensor)] += 1
    return found


def _adapter_config(part: nn.Module) -> Mapping[str, Any]:
    return getattr(part, "peft_config", None) or {}


def _content(tensor: Tensor) -> str:
    """A digest of a tensor's shape and numbers, in float32; the same for all tensors without memory."""
    return "none" if tensor.is_meta else digest(tensor.detach().float())


def _is_alpha(name: str, tensor: Tensor) -> bool:
    return name.rpartition(".")[2] == "alpha" and tensor.numel() == 1


def _traced(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, with gradients, of tensors of any type."""
    return {name: tensor.detach().float().clone().requires_grad_() for name, tensor in weights.items()}


def _floats(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: each for name, each in tree.items() if isinstance(each, Tensor) and each.is_floating_point()}


def _gradients(total: Tensor, begins: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    if not total.requires_grad or not begins:
        return {}
    found = torch.autograd.grad(total, list(begins.values()), allow_unused=True, retain_graph=True)
    return dict(zip(begins, found, strict=True))


def _numbers(result: Sequence[Any]) -> dict[str, Tensor]:
    """All converted numbers: the tensors, and the alphas next to them."""
    found: dict[str, Tensor] = {}
    for place, part in enumerate(result):
        for name, value in part.items() if isinstance(part, Mapping) else ():
            if isinstance(value, Tensor | int | float):
                found[f"{place}.{name}"] = torch.as_tensor(value)
    return found


@contextmanager
def _explained(pipeline: object, what: str) -> Iterator[None]:
    """Raise errors of the stock loader as a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # loaders raise many kinds: all mean that the file does not fit
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"a {type(pipeline).__name__} cannot load {what} ({reason}): give a LoRA file for this pipeline"
        ) from error
