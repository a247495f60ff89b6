"""CUDA graph capture: the kernels of a network's call, captured once and then launched together.

A kernel takes the processor some microseconds to launch, whatever it computes, and a small network's kernels are done
sooner than that: the GPU waits (`docs/results/performance.md` has figures).
torch.cuda.make_graphed_callables captures a call, forward and backward, and replays it with new numbers at the same
addresses.
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

CALLS_BEFORE = 8  # calls of one kind before it is captured, which takes as long as a few of them
MOST_DIFFERENCE = 0.05  # of a replay from a plain call, over the latter's norm: rounding to bf16 makes one hundredth
Kind = tuple[Any, ...]  # of a call: shapes and types of its arguments, precision, whether a gradient is needed


def accelerated(network: nn.Module, compiled: bool, graphs: bool) -> nn.Module:
    """The network in the form in which it is computed: compiled by torch.compile, as CUDA graphs, or as it is."""
    if compiled:
        return cast(nn.Module, torch.compile(network))
    return network if not graphs or isinstance(network, CudaGraphs) else CudaGraphs(network)


def check_available() -> None:
    """Raise a UserError where there is no CUDA."""
    if not torch.cuda.is_available():
        raise UserError("cuda_graphs needs a CUDA device, and there is none here: set it to false")


class CudaGraphs(nn.Module):
    """A network whose calls are captured as CUDA graphs.

    Replayed are calls whose tensors are on a GPU and need no gradient, with no dropout at work and no running mean to
    keep; with a gradient one call before each backward pass, since a second one would overwrite the activations of
    the first. Others call the network. Weights may be changed in place; where they move, all is captured again. Before
    a graph is used it is compared with a call of the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._calls: dict[Kind, int] = {}
        self._graphs: dict[Kind, Callable[..., Any]] = {}
        self._addresses: list[int] = []
        self._awaiting: Callable[[], Tensor | None] = lambda: None

    def forward(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """The network's output; a UserError where the call cannot be captured, or a replay differs from it."""
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
        """Whether a call does nothing that a graph would not."""
        placed = all(each.is_cuda and not each.requires_grad for each in tensors)
        return placed and not (self.network.training and any(map(_changes_with_calls, self.network.modules())))

    def _forget_moved_weights(self) -> None:
        """Drop what was captured of weights or buffers that lay elsewhere."""
        addresses = [each.data_ptr() for each in (*self.network.parameters(), *self.network.buffers())]
        if addresses != self._addresses:
            self._addresses = addresses
            self.release()

    def release(self) -> None:
        """Drop all graphs and their memory."""
        self._calls.clear()
        if self._graphs:
            self._graphs.clear()
            gc.collect()  # what make_graphed_callables returns refers to itself

    def _capture(self, call: "_Call", with_gradient: bool) -> Callable[..., Any]:
        """A graph of the call."""
        weights = [each for each in self.network.parameters() if each.requires_grad and with_gradient]
        enabled, dtype = _precision()
        torch.clear_autocast_cache()  # which holds nodes of autograd that belong to the stream of earlier calls
        try:
            with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
                expected = _results(call, call.tensors, weights)
                sample = tuple(each.clone() for each in call.tensors)
                graph = torch.cuda.make_graphed_callables(call, sample, allow_unused_input=True)
                agree = all(map(_agree, _results(graph, call.tensors, weights), expected))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever code of the network's own raises while it is captured
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            raise UserError(self._refusal(reason)) from error
        if not agree:
            raise UserError(self._refusal("a replay differs from the call"))
        return graph

    def _refusal(self, reason: str) -> str:
        """After a capture that failed nothing can be computed in the process: torch may still be in it."""
        return f"{type(self.network).__name__} cannot be captured as a CUDA graph ({reason}): set cuda_graphs to false"

    def _backward_has_begun(self, gradient: Tensor) -> None:
        self._awaiting = lambda: None


class _Call(nn.Module):
    """A call of a network as a function of the tensors among its arguments, wherever they are in them."""

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
        """What another call must have in common with this one to differ in numbers alone."""
        shapes = [(each.shape, each.dtype) if isinstance(each, Tensor) else repr(each) for each in self.leaves]
        return (*shapes, str(self.structure))

    def forward(self, *tensors: Tensor) -> Any:  # noqa: ANN401
        """The network's output with other tensors in the places of these."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        arguments, named = pytree.tree_unflatten(leaves, self.structure)
        return self.network(*arguments, **named)


def _precision() -> tuple[bool, torch.dtype]:
    """Whether and to what the GPU's operations are autocast."""
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _changes_with_calls(module: nn.Module) -> bool:
    """Whether a module in training draws random numbers or keeps running means."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _NormBase) and module.track_running_stats


def _results(call: Callable[..., Any], tensors: list[Tensor], weights: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """A call's output, and the gradient of its sum by the weights, each as one long vector."""
    outputs = [output.float() for output in pytree.tree_leaves(call(*tensors))]
    output = torch.cat([each.detach().flatten() for each in outputs])
    if not weights:
        return output, output.new_zeros(1)
    total = torch.stack([each.sum() for each in outputs]).sum()
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    return output, torch.cat([each.flatten().float() for each in gradients if each is not None])


def _agree(replayed: Tensor, expected: Tensor) -> bool:
    """Whether both differ by no more than rounding makes."""
    same = replayed.shape == expected.shape
    return same and bool((replayed - expected).norm() <= MOST_DIFFERENCE * expected.norm())
