r"""A network's weights: unwrapping, copying, precision for training, checks.

16-bit weights are trained in float32 (master weights): an update of 1e-4 is lost on a bf16 weight of 0.1, where numbers
are 5e-4 apart. A float64 network stays float64 and gets float64 data.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from progdist._utils.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(network, "_orig_mod", None)  # torch.compile
        if isinstance(network, DataParallel | DistributedDataParallel):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def copied(module: Module) -> Module:
    """Copy a module. Raise a UserError where torch cannot copy it."""
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"the network cannot be copied ({reason}): a student starts as a copy of its teacher, so make "
            "copy.deepcopy(network) work (e.g. torch.nn.utils.parametrizations.weight_norm instead of weight_norm)"
        ) from error


def widen(module: nn.Module) -> None:
    """Convert tensors of fewer than 32 bits to float32, the master weights."""
    for tensor in _floats(module):
        if tensor.element_size() < 4:
            tensor.data = tensor.data.float()


def narrow(module: nn.Module, like: nn.Module) -> None:
    """Convert a module's tensors to the types of their namesakes in another; new ones to the type of its first."""
    types = {name: tensor.dtype for name, tensor in _named(like) if tensor.is_floating_point()}
    first = next(iter(types.values()), torch.float32)
    for name, tensor in _named(module):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(types.get(name, first))


def is_double(network: nn.Module) -> bool:
    """Whether all of a network's floating-point weights are float64."""
    types = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return types == {torch.float64}


@torch.no_grad()
def check_finite(network: nn.Module, whose: str) -> None:
    """Raise a UserError for weights that are not finite; frozen ones may be infinite, like masks, but not NaN."""
    for name, tensor in _named(network):
        if tensor.is_floating_point() or tensor.is_complex():
            wrong = ~tensor.isfinite() if tensor.requires_grad else tensor.isnan()
            if count := int(wrong.sum()):
                raise UserError(
                    f"{whose}: {count:,} of the {tensor.numel():,} values of {name[:100]} are not finite: restore the "
                    "weights, or save them again in float32"
                )


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from cast(Iterator[tuple[str, Tensor]], module.named_parameters())
    yield from module.named_buffers()


def _floats(module: nn.Module) -> Iterator[Tensor]:
    return (tensor for _, tensor in _named(module) if tensor.is_floating_point())
