"""CUDA graph capture: the kernels of a network's call, captured once and launched together.

Launching a kernel takes the CPU some microseconds whatever it computes, and a small network's kernels finish sooner:
the GPU waits (`docs/results/performance.md` has figures). torch.cuda.make_graphed_callables captures a call, forward
and backward, and replays it with new numbers at the same addresses.
"""

import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from progdist._utils.errors import UserError

CALLS_BEFORE = 8  # calls of one kind before it is captured, since a capture costs as much as a few calls
MOST_DIFFERENCE = 0.05  # between replay and plain call, relative to the call's norm: rounding to bf16 makes 0.01
Kind = tuple[Any, ...]  # of a call: shapes and types of its arguments, precision, whether it needs a gradient


def accelerated(network: nn.Module, compiled: bool, graphs: bool) -> nn.Module:
    """The network compiled by torch.compile, as CUDA graphs, or unchanged."""
    if compiled:
        return cast(nn.Module, torch.compile(network))
    return network if not graphs or isinstance(network, CudaGraphs) else CudaGraphs(network)


def check_available() -> None:
    """Raise a UserError where CUDA is not available."""
    if not torch.cuda.is_available():
        raise UserError("cuda_graphs requires a CUDA device, and none was found: set it to false")


class CudaGraphs(nn.Module):
    """A network whose calls are captured as CUDA graphs.

    A call is replayed if its tensors are on a GPU and need no gradient, without dropout or running means to update.
    With a gradient, one call before each backward pass is replayed, since a second would overwrite the activations of
    the first. Other calls run the network. Weights may change in place; if they move, everything is captured again.
    Each graph is compared with a call of the network before it is used.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._calls: dict[Kind, int] = {}
        self._graphs: dict[Kind, Callable[..., Any]] = {}
        self._addresses: list[int] = []
        self._awaiting: Callable[[], Tensor | None] = lambda: None

    def forward(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """The network's output; raises a UserError if the call cannot be captured or its replay differs."""
        call = _Call(self.network, arguments, named)
        with_gradient = torch.is_grad_enabled() and any(each.requires_grad for each in self.network.parameters())
        if not self._can_be_replayed(call.tensors) or (with_gradient and self._awaiting() is not None):
            return self.network(*arguments, **named)
        self._forget_moved_weights()
        kind = (with_gradient, self.network.training, _precision(), call.form())
        self._calls[kind] = calls = self._calls.get(kind, 0) + 1
        if calls <= CALLS_BEFORE:
            return self.network(*arguments, **named)
        if kind not in self._graphs:
            self._graphs[kind] = self._capture(call, with_gradient)
        output = self._graphs[kind](*call.tensors)
        if not with_gradient:
            return pytree.tree_map_only(Tensor, torch.clone, output)  # the next replay overwrites it
        for tensor in pytree.tree_leaves(output):
            if tensor.requires_grad:
                self._awaiting = weakref.ref(tensor)
                tensor.register_hook(self._backward_has_begun)
        return output

    def _can_be_replayed(self, tensors: list[Tensor]) -> bool:
        """Whether a graph can do everything that the call does."""
        placed = all(each.is_cuda and not each.requires_grad for each in tensors)
        return placed and not (self.network.training and any(map(_changes_with_calls, self.network.modules())))

    def _forget_moved_weights(self) -> None:
        """Drop graphs whose weights or buffers have moved."""
        addresses = [each.data_ptr() for each in (*self.network.parameters(), *self.network.buffers())]
        if addresses != self._addresses:
            self._addresses = addresses
            self.release()

    def release(self) -> None:
        """Drop all graphs and their memory."""
        self._calls.clear()
        if self._graphs:
            self._graphs.clear()
            gc.collect()  # the callables of make_graphed_callables refer to themselves

    def _capture(self, call: "_Call", with_gradient: bool) -> Callable[..., Any]:
        """Capture the call as a graph."""
        weights = [each for each in self.network.parameters() if each.requires_grad and with_gradient]
        enabled, dtype = _precision()
        torch.clear_autocast_cache()  # it holds autograd nodes that belong to the stream of earlier calls
        try:
            with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
                expected = _results(call, call.tensors, weights)
                sample = tuple(each.clone() for each in call.tensors)
                graph = torch.cuda.make_graphed_callables(call, sample, allow_unused_input=True)
                agree = all(map(_agree, _results(graph, call.tensors, weights), expected))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # anything that the network's own code raises during capture
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            raise UserError(self._refusal(reason)) from error
        if not agree:
            raise UserError(self._refusal("a replay differs from the call"))
        return graph

    def _refusal(self, reason: str) -> str:
        """The error message. After a failed capture the process can compute no more: torch may still be in it."""
        return f"{type(self.network).__name__} cannot be captured as a CUDA graph ({reason}): set cuda_graphs to false"

    def _backward_has_begun(self, gradient: Tensor) -> None:
        self._awaiting = lambda: None


class _Call(nn.Module):
    """A network's call as a function of the tensors anywhere among its arguments."""

    def __init__(self, network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.leaves, self.structure = pytree.tree_flatten((arguments, named))
        self.places = [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of this call."""
        return [self.leaves[place] for place in self.places]

    def form(self) -> Kind:
        """What two calls must share to differ only in their numbers."""
        shapes = [(each.shape, each.dtype) if isinstance(each, Tensor) else repr(each) for each in self.leaves]
        return (*shapes, str(self.structure))

    def forward(self, *tensors: Tensor) -> Any:  # noqa: ANN401
        """The network's output with other tensors in place of these."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        arguments, named = pytree.tree_unflatten(leaves, self.structure)
        return self.network(*arguments, **named)


def _precision() -> tuple[bool, torch.dtype]:
    """Whether GPU operations are autocast, and to which type."""
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _changes_with_calls(module: nn.Module) -> bool:
    """Whether a module in training draws random numbers or keeps running means."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _NormBase) and module.track_running_stats


def _results(call: Callable[..., Any], tensors: list[Tensor], weights: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """A call's output, and the gradient of its sum with respect to the weights, each as one long vector."""
    outputs = [output.float() for output in pytree.tree_leaves(call(*tensors))]
    output = torch.cat([each.detach().flatten() for each in outputs])
    if not weights:
        return output, output.new_zeros(1)
    total = torch.stack([each.sum() for each in outputs]).sum()
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    return output, torch.cat([each.flatten().float() for each in gradients if each is not None])


def _agree(replayed: Tensor, expected: Tensor) -> bool:
    """Whether the two differ by no more than rounding."""
    same = replayed.shape == expected.shape
    return same and bool((replayed - expected).norm() <= MOST_DIFFERENCE * expected.norm())
