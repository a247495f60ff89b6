"""The frozen base of LoRA adapters in 8 or 4 bits: which of a network's layers are quantized, and which are not.

Quantized are the linear layers within the lists of blocks (`nn.ModuleList`) that make up diffusers' networks, where
nearly all of their weights are but for convolutions. Everything else stays as it is, and is shared with the network:

    outside of blocks      what comes first and last: embeddings of times, prompts and patches, projections of in- and
                           outputs, last norms
    `time_emb_proj`        of the residual blocks of U-Nets, the rest of their embedding of the time
    `_keep_in_fp32_modules`  what diffusers' class keeps in float32, quantized or not
    other layers           norms, convolutions, embeddings; diffusers quantizes linear layers alone
"""

import copy
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.names import Bits
from progdist.compute.quantized import QuantizedLinear, require_bitsandbytes

OF_TIME = "time_emb_proj"
_MADE: WeakKeyDictionary[nn.Module, dict[Bits, nn.Module]] = WeakKeyDictionary()


def quantized_base(network: nn.Module, bits: Bits) -> nn.Module:
    """The one copy of a network in so many bits, made when it is first asked for; the network is left as it is.

    What is not quantized is shared with it, and nothing is trained. It is computed on CUDA where there is a
    device, and lies where the network lies.

    Raises:
        UserError: the extra `bnb` is missing.
    """
    made = _MADE.setdefault(network, {})
    if bits not in made:
        made[bits] = _quantized(network, bits)
    return made[bits]


def check_quantizable(network: nn.Module) -> None:
    """Refuse a network of which nothing is quantized, and a missing extra `bnb`, by a UserError."""
    if not quantized_layers(network):
        kind = type(network).__name__
        raise UserError(f"base_bits requires linear layers in blocks, and a {kind} has none: remove base_bits")
    require_bitsandbytes()


def quantized_layers(network: nn.Module) -> list[str]:
    """The names of the layers that are quantized."""
    whole: list[str] = getattr(network, "_keep_in_fp32_modules", None) or []
    return [name for name in _in_blocks(network) if not {OF_TIME, *whole} & set(name.split("."))]


def quantized_bytes(network: nn.Module) -> int:
    """Bytes of the codes and scales of a base, which a network in full does not share."""
    layers = (module for module in network.modules() if isinstance(module, QuantizedLinear))
    return sum(layer.weight.nbytes + layer.scales.nbytes for layer in layers)


def _in_blocks(network: nn.Module) -> Iterator[str]:
    """The names of the linear layers that are in a list of blocks."""
    lists = [name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and any(name.startswith(f"{blocks}.") for blocks in lists):
            yield name


def _quantized(network: nn.Module, bits: Bits) -> nn.Module:
    base = copy.deepcopy(network, {id(shared): shared for shared in network.parameters()}).requires_grad_(False)
    for name in quantized_layers(network):
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        base.set_submodule(name, _of(layer, bits))
    return base


def _of(layer: nn.Linear, bits: Bits) -> QuantizedLinear:
    """A layer quantized, where it lies."""
    home = layer.weight.device
    if home.type != "cpu" or not torch.cuda.is_available():
        return QuantizedLinear(layer, bits)
    there = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    there.weight = nn.Parameter(layer.weight.detach().cuda(), requires_grad=False)
    made = QuantizedLinear(there, bits).to(home)
    made.bias = layer.bias
    return made
