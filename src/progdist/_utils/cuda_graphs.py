"""CUDA graphs: the kernels of a network's call, recorded once and then launched together.

A kernel takes the processor some microseconds to launch, whatever it computes, and a small network's kernels are done
sooner than that: the GPU waits (`docs/performance.md` has figures). torch.cuda.make_graphed_callables records a call,
forward and backward, and replays it with new numbers at the same addresses. Here it is given the calls that can be
replayed, and all others are made as usual. What is recorded is compared with the usual call before it is relied on.
"""

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

MOST_PARAMETERS = 100_000_000
"""In larger networks kernels take longer than their launch, and a graph holds a copy of the activations."""

PLAIN_CALLS = 8
"""Calls of one kind before it is recorded, which takes as long as five of them."""

MOST_DIFFERENCE = 0.05
"""Between a replay and the call made as usual, over the latter's norm: in bf16 rounding alone makes one hundredth."""

Kind = tuple[Any, ...]
"""What a recorded call is of: shapes and types of its arguments, precision, whether a gradient is wanted."""


def accelerated(network: nn.Module, compiled: bool, graphs: bool) -> nn.Module:
    """The network in the form in which it is computed: compiled by torch.compile, replayed, or as it is."""
    if compiled:
        return cast(nn.Module, torch.compile(network))
    return replayed(network) if graphs else network


def replayed(network: nn.Module) -> nn.Module:
    """The network, its calls replayed where that can be and pays; itself where there is no CUDA or it is large."""
    large = sum(parameter.numel() for parameter in network.parameters()) > MOST_PARAMETERS
    return network if large or isinstance(network, Replayed) or not torch.cuda.is_available() else Replayed(network)


class Replayed(nn.Module):
    """A network whose calls are recorded as CUDA graphs.

    Replayed are calls with tensors alone, on a GPU, that keep nothing but gradients of the weights: no gradient of the
    arguments is wanted, no dropout is at work and no running mean is kept. With a gradient there is one call before
    each backward pass: a second one would overwrite the activations of the first, and is made as usual. Weights may be
    changed in place; where they move, recording begins anew.

    Args:
        network: that computes; its weights are shared.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._calls: dict[Kind, int] = {}
        self._graphs: dict[Kind, Callable[..., Any] | None] = {}
        self._addresses: list[int] = []
        self._awaits_backward = False

    def forward(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """The network's output, of its own type."""
        given, names = (*arguments, *named.values()), tuple(named)
        learning = torch.is_grad_enabled() and any(each.requires_grad for each in self.network.parameters())
        if not self._can_be_replayed(given) or (learning and self._awaits_backward):
            return self.network(*arguments, **named)
        self._forget_moved_weights()
        kind = (names, learning, _precision(), *((each.shape, each.dtype) for each in given))
        self._calls[kind] = calls = self._calls.get(kind, 0) + 1
        if calls <= PLAIN_CALLS:
            return self.network(*arguments, **named)
        if kind not in self._graphs:
            self._graphs[kind] = self._record(given, names, learning)
        if (graph := self._graphs[kind]) is None:
            return self.network(*arguments, **named)
        output = graph(*given)
        if not learning:
            return pytree.tree_map_only(Tensor, torch.clone, output)  # the next replay overwrites it
        self._awaits_backward = True
        for tensor in pytree.tree_leaves(output):
            tensor.register_hook(self._backward_has_begun)
        return output

    def _can_be_replayed(self, given: tuple[Any, ...]) -> bool:
        """Whether a call does nothing that a graph would not."""
        tensors = all(isinstance(each, Tensor) and each.is_cuda and not each.requires_grad for each in given)
        return tensors and not (self.network.training and any(map(_changes_with_calls, self.network.modules())))

    def _forget_moved_weights(self) -> None:
        """Drop what was recorded of weights that lay elsewhere."""
        addresses = [each.data_ptr() for each in self.network.parameters()]
        if addresses != self._addresses:
            self._addresses = addresses
            self._calls.clear()
            self._graphs.clear()

    def _record(self, given: tuple[Tensor, ...], names: tuple[str, ...], learning: bool) -> Callable[..., Any] | None:
        """A graph of the call; None where there can be none, of which the user is told."""
        call, (enabled, dtype) = _Positional(self.network, names), _precision()
        weights = [each for each in self.network.parameters() if each.requires_grad and learning]
        try:
            expected = _results(call, given, weights)
            with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
                sample = tuple(each.clone() for each in given)
                graph = torch.cuda.make_graphed_callables(call, sample, allow_unused_input=True)
            if _agree(_results(graph, given, weights), expected):
                return graph
            reason = "a replay differs from the call"
        except Exception as error:  # whatever code of the network's own raises while it is recorded
            reason = " ".join(str(error).split())[:150]
        warnings.warn(
            f"{type(self.network).__name__} cannot be recorded as a CUDA graph ({reason}) and runs without, as it does "
            "with cuda_graphs set to false",
            stacklevel=2,
        )
        return None

    def _backward_has_begun(self, gradient: Tensor) -> None:
        self._awaits_backward = False


class _Positional(nn.Module):
    """A network with its last arguments, which have names, given by place."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *given: Tensor) -> Any:  # noqa: ANN401
        """The network's output."""
        count = len(given) - len(self.names)
        return self.network(*given[:count], **dict(zip(self.names, given[count:], strict=True)))


def _precision() -> tuple[bool, torch.dtype]:
    """Whether and to what the GPU's operations are autocast."""
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _changes_with_calls(module: nn.Module) -> bool:
    """Whether a module in training draws random numbers or keeps running means."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _NormBase) and module.track_running_stats


def _results(call: Callable[..., Any], given: tuple[Tensor, ...], weights: list[nn.Parameter]) -> list[Tensor | None]:
    """The tensors that a call gives, and the gradients of their sum by the weights; None for a weight without one."""
    outputs = pytree.tree_leaves(call(*given))
    found: list[Tensor | None] = [each.detach().clone() for each in outputs]
    if weights:
        total = torch.stack([each.float().sum() for each in outputs]).sum()
        found += torch.autograd.grad(total, weights, allow_unused=True)
    return found


def _agree(found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    """Whether each differs from what is expected by no more than rounding does."""
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
        elif not (one - other).float().norm() <= MOST_DIFFERENCE * other.float().norm():
            return False
    return True
