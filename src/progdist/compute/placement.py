r"""Where weights live: on the CPU in float32 at rest, and on the device only while they are used.

A frozen network that computes in bf16 is held in bf16 on the device, at half the bytes. Autocast rounds the weights of
linear and convolutional layers to bf16 at every call, so rounding them once gives the same predictions bit for bit.
Other weights, e.g. of norms and embeddings, stay in float32, as autocast leaves them. So does the very first weight,
from which diffusers' networks read the precision of their sums. Layers of 8 or 4 bits (`progdist.compute.quantized`)
stay as they are.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, nn

from progdist._utils.names import Precision
from progdist.compute.precision import resolve
from progdist.compute.quantized import QuantizedLinear

Network = TypeVar("Network", bound=nn.Module)
ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # layers whose weights autocast rounds


@contextmanager
def at_work(network: nn.Module, device: torch.device, precision: Precision = "float32") -> Iterator[None]:
    """Move a frozen network to a device inside the context, for anything that shares its weights, too.

    It is not trained there and is called under autocast in `precision`. Afterwards its weights are restored.
    """
    halved = _rounded(network) if resolve(precision, device) == "bf16" else set[int]()
    resting = [(tensor, tensor.data) for tensor in (*network.parameters(), *network.buffers())]
    try:
        for tensor, data in resting:
            tensor.data = data.to(device, torch.bfloat16) if id(tensor) in halved else data.to(device)
        yield
    finally:
        for tensor, data in resting:
            tensor.data = data


def bytes_at_work(network: nn.Module, bf16: bool) -> int:
    """Bytes of a frozen network's weights on a device, computing in bf16 or float32."""
    halved = _rounded(network) if bf16 else set[int]()
    return sum(2 * weight.numel() if id(weight) in halved else weight.nbytes for weight in network.parameters())


def empty_copy(network: Network, device: torch.device) -> Network:
    """A network with uninitialized tensors of the same shapes and types on a device; on meta they take no memory."""
    empty = partial(torch.empty, device=device)
    others = (*network.buffers(), *_unregistered(network))
    tensors: dict[int, Tensor] = {id(each): empty(each.shape, dtype=each.dtype) for each in others}
    for each in network.parameters():
        tensors[id(each)] = nn.Parameter(empty(each.shape, dtype=each.dtype), each.requires_grad)
    return copy.deepcopy(network, tensors)


def _unregistered(network: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules keep as plain attributes, e.g. rotary embedding tables."""
    for module in network.modules():
        for value in vars(module).values():
            yield from (
                each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, Tensor)
            )


def _rounded(network: nn.Module) -> set[int]:
    """The ids of the weights that are held in bf16."""
    modules = (module for module in network.modules() if not isinstance(module, QuantizedLinear))
    layers = (module for module in modules if isinstance(module, ROUNDED))
    weights = (weight for layer in layers for weight in layer.parameters(recurse=False))
    rounded = {id(weight) for weight in weights if weight.dtype == torch.float32}  # autocast does not change float64
    return rounded - {id(weight) for weight in islice(network.parameters(), 1)}
