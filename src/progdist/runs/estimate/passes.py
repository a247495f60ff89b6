"""A network's training pass on fake tensors, which have shapes and no numbers: what it keeps, and what it computes.

It is counted as CUDA would compute it in bf16: matrix products and convolutions in bf16, norms and sums in float32 (see
`CudaAutocast`), attention by a fused kernel that keeps no scores. Counted are

    kept        bytes that autograd keeps for the way back, copies of the weights in bf16 among them
    between     those that are left under gradient checkpointing: of what is outside of the blocks that it recomputes,
                and of their inputs
    block       the most that one of these blocks keeps
    forward     floating-point operations of one evaluation, two to a multiplication with addition
    operations  those of the whole pass, forward and back
    again       those of the blocks, which gradient checkpointing computes once more
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
    """Operations of a fused attention of these shapes."""
    return sdpa_flop_count(query, key, value)


def _attention_back(gradient: Sizes, query: Sizes, key: Sizes, value: Sizes, *rest: object, **more: object) -> int:
    """Those of the backward pass, including the recomputed scores."""
    return sdpa_backward_flop_count(gradient, query, key, value)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}
"""The fused attention of CPUs, of which torch's counter knows that of CUDA alone."""

IN_FLOAT32 = {
    *("layer_norm", "group_norm", "norm", "softmax", "log_softmax", "softplus", "pow", "__pow__", "rsqrt"),
    *("reciprocal", "exp", "log", "sum", "prod", "cumsum", "cumprod"),
}
"""Functions of networks that autocast of CUDA computes in float32, and that of CPUs does not (torch's page on AMP)."""


@dataclass(frozen=True)
class TrainingPass:
    """One pass of a batch, as counted."""

    kept: int
    between: int
    block: int
    forward: int  # this and those below are 0 where operations are not counted
    operations: int
    again: int


class CudaAutocast(TorchFunctionMode):
    """Autocast of the CPU, inside of it, casts what autocast of CUDA casts."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """The function, of float32 where CUDA computes it so."""
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
    """A pass of a batch through a network, which may lie on the meta device and is left as it is.

    `arguments` makes those of a batch on the default device. Weights that need no gradient are frozen, in their own
    precision. `operations` whether to count these, which takes half of the time: they grow as the batch.

    Raises:
        UserError: the network cannot be called so, or has no gradient checkpointing.
    """
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise UserError(f"{type(network).__name__} has no gradient checkpointing: expected a network that has it")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about norms of two precisions
            return _counted(empty_copy(network, CPU).train(), arguments(batch), operations, precision)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # what networks raise of shapes they do not take
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{type(network).__name__} does not take this size ({reason}): choose another") from error


def _counted(network: nn.Module, arguments: dict[str, Any], operations: bool, precision: Precision) -> TrainingPass:
    """A pass of a network that gets gradients."""
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
    """The blocks that gradient checkpointing recomputes, as they run: what they save, and their inputs."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.inside, self.held, self.largest = False, 0, 0  # whether in a block; bytes of all, and of the largest
        self.between: dict[int, torch.UntypedStorage] = {}  # what is kept whatever the blocks keep
        self.operations = 0

    def keep(self, storage: torch.UntypedStorage, new: bool) -> None:
        """A storage is kept, perhaps not for the first time."""
        self.held += storage.nbytes() if new else 0
        if not self.inside:
            self.between[storage._cdata] = storage

    def run(self, block: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
        """A block, as it is; one within another is part of it."""
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
