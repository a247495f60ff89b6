"""Count memory and operations of a network's training pass on fake tensors, which have shapes but no values.

The count follows CUDA in bf16: matrix products and convolutions in bf16, norms and sums in float32 (see
`CudaAutocast`), attention by a fused kernel that keeps no scores. The counts are

    kept        bytes that autograd keeps for the backward pass, including bf16 copies of the weights
    between     bytes kept under gradient checkpointing: outside of the blocks that it recomputes, and the inputs of
                these blocks
    block       the most bytes that one of these blocks keeps
    forward     floating-point operations of one evaluation, two per multiplication with addition
    operations  operations of the whole pass, forward and backward
    again       operations of the blocks, which gradient checkpointing computes twice
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist.compute.placement import empty_copy
from progdist.compute.precision import autocast
from progdist.models.safe_loading import quiet
from progdist.runs.estimate.memory import kept_bytes

CPU = torch.device("cpu")
Sizes = tuple[int, ...]


def _attention(query: Sizes, key: Sizes, value: Sizes, *rest: object, **more: object) -> int:
    """Operations of fused attention with these shapes."""
    return sdpa_flop_count(query, key, value)


def _attention_back(gradient: Sizes, query: Sizes, key: Sizes, value: Sizes, *rest: object, **more: object) -> int:
    """Operations of its backward pass, including the recomputed scores."""
    return sdpa_backward_flop_count(gradient, query, key, value)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}
"""The fused attention of CPUs, which torch's counter does not know (only that of CUDA)."""

IN_FLOAT32 = {
    *("layer_norm", "group_norm", "norm", "softmax", "log_softmax", "softplus", "pow", "__pow__", "rsqrt"),
    *("reciprocal", "exp", "log", "sum", "prod", "cumsum", "cumprod"),
}
"""Functions that autocast computes in float32 on CUDA, but not on CPUs (torch's page on AMP)."""


@dataclass(frozen=True)
class TrainingPass:
    """The counts of one pass of a batch."""

    kept: int
    between: int
    block: int
    forward: int  # this and the fields below are 0 if operations are not counted
    operations: int
    again: int


class CudaAutocast(TorchFunctionMode):
    """Context in which autocast of the CPU casts as autocast of CUDA does."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call the function, in float32 if CUDA does."""
        given: tuple[tuple[Any, ...], dict[str, Any]] = (args, kwargs or {})
        if getattr(function, "__name__", "") in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            given = cast(Any, tree_map(_in_float32, given))
        return function(*given[0], **given[1])


def _in_float32(value: Any) -> Any:  # noqa: ANN401
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def training_pass(
    network: nn.Module,
    arguments: Callable[[int], dict[str, Any]],
    batch: int,
    *,
    operations: bool = True,
    precision: Precision = "bf16",
) -> TrainingPass:
    """Count a pass of a batch through a network, which may be on the meta device and is not modified.

    `arguments` makes the inputs of a batch on the default device. Weights without gradient are frozen, in their own
    precision. `operations` is whether to count operations, which takes half of the time: they are proportional to the
    batch.

    Raises:
        UserError: the network does not take these arguments, or has no gradient checkpointing.
    """
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise UserError(f"expected a network with gradient checkpointing, got a {type(network).__name__}")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about norms in two precisions
            return _counted(empty_copy(network, CPU).train(), arguments(batch), operations, precision)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # raised by networks for shapes they do not take
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{type(network).__name__} does not take this size ({reason}): choose another") from error


def _counted(network: nn.Module, arguments: dict[str, Any], operations: bool, precision: Precision) -> TrainingPass:
    """Count a pass of a network with gradients."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    blocks = _Blocks(counter)
    cast(Any, network).enable_gradient_checkpointing(gradient_checkpointing_func=blocks.run)
    forward = 0

    def work() -> None:
        nonlocal forward
        with counter if operations else nullcontext(), CudaAutocast():
            with autocast(CPU, precision):
                output = network(**arguments, return_dict=False)[0]
            loss = sum((each.float().square().mean() for each in tree_leaves(output)), torch.zeros(()))
            forward = counter.get_total_flops() if operations else 0
            torch.autograd.backward(loss)

    kept = kept_bytes(work, network, blocks.keep)
    total = counter.get_total_flops() if operations else 0
    between = sum(storage.nbytes() for storage in blocks.between.values())
    return TrainingPass(kept, between, blocks.largest, forward, total, blocks.operations)


class _Blocks:
    """Records what the blocks that gradient checkpointing recomputes save, and their inputs."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.inside, self.held, self.largest = False, 0, 0  # whether in a block; bytes of all, and of the largest
        self.between: dict[int, torch.UntypedStorage] = {}  # storages kept outside of the blocks
        self.operations = 0

    def keep(self, storage: torch.UntypedStorage, new: bool) -> None:
        """Count a storage that autograd keeps, perhaps not for the first time."""
        self.held += storage.nbytes() if new else 0
        if not self.inside:
            self.between[storage._cdata] = storage

    def run(self, block: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
        """Run a block; a block within another is part of it."""
        if self.inside:
            return block(*args)
        for tensor in (each for each in tree_leaves(args) if isinstance(each, Tensor)):
            self.between[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        before, computed, self.inside = self.held, self.counter.get_total_flops(), True
        output = block(*args)
        self.inside = False
        self.largest = max(self.largest, self.held - before)
        self.operations += self.counter.get_total_flops() - computed
        return output
