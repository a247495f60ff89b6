r"""Where weights lie: at rest on the CPU in float32, and on the device only while they are at work.

A frozen network that computes in bf16 is held in it there, at half of the bytes: autocast rounds the weights of its
linear and convolutional layers to bf16 at every call, so that to round them once gives the same predictions bit for
bit. Its other weights, those of norms and embeddings, stay in float32, as autocast leaves them, and so does the very
first one, by which diffusers' networks tell the precision of what they add up. Layers of 8 or 4 bits (see
`progdist.compute.quantized`) stay as they are.
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
    """A frozen network on a device meanwhile, where what shares its weights, e.g. a low-rank student, sees them, too.

    It is not trained meanwhile, and autocast in the precision; afterwards its weights are as and where they were.
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
    """Bytes of a frozen network's weights on a device, where it computes in bf16 or float32."""
    halved = _rounded(network) if bf16 else set[int]()
    return sum(2 * weight.numel() if id(weight) in halved else weight.nbytes for weight in network.parameters())


def empty_copy(network: Network, device: torch.device) -> Network:
    """A network with tensors of the same shapes and precisions on a device, filled with anything; on meta, nothing."""
    empty = partial(torch.empty, device=device)
    others = (*network.buffers(), *_unregistered(network))
    tensors: dict[int, Tensor] = {id(each): empty(each.shape, dtype=each.dtype) for each in others}
    for each in network.parameters():
        tensors[id(each)] = nn.Parameter(empty(each.shape, dtype=each.dtype), each.requires_grad)
    return copy.deepcopy(network, tensors)


def _unregistered(network: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules keep as plain attributes, e.g. tables of rotary embeddings."""
    for module in network.modules():
        for value in vars(module).values():
            yield from (
                each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, Tensor)
            )


def _rounded(network: nn.Module) -> set[int]:
    """The identities of the weights that are held in bf16."""
    modules = (module for module in network.modules() if not isinstance(module, QuantizedLinear))
    layers = (module for module in modules if isinstance(module, ROUNDED))
    weights = (weight for layer in layers for weight in layer.parameters(recurse=False))
    rounded = {id(weight) for weight in weights if weight.dtype == torch.float32}  # autocast leaves float64 as it is
    return rounded - {id(weight) for weight in islice(network.parameters(), 1)}
