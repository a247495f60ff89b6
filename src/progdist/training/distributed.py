"""Several processes in one run: the main process reads, decides and writes, and broadcasts the result.

Started alone there is one process. Under torchrun or `accelerate launch` the processes share batches, gradients
and samples; the folder of the run must be one that all of them see.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from progdist._utils.errors import UserError
from progdist.training.checkpoint import Checkpoint, Checkpoints

Result = TypeVar("Result")
WAIT = timedelta(hours=2)
"""How long a process waits for the others, e.g. while the first one measures; nccl's own 10 minutes can be too few."""


def make_accelerator() -> Accelerator:
    """accelerate's view of this process, without its autocast and accumulation: the training loop has its own."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )


def load_agreed_checkpoint(checkpoints: Checkpoints, accelerator: Accelerator) -> Checkpoint | None:
    """The newest whole checkpoint that the first process sees, read by all; None where it sees none.

    Raises:
        UserError: in all processes, if one of them cannot read that checkpoint.
    """
    latest = checkpoints.latest() if accelerator.is_main_process else None
    if accelerator.num_processes == 1:
        return latest
    update: list[int | None] = [latest.update if latest else None]
    broadcast_object_list(update)
    number, failure = update[0], None
    if number is not None and latest is None:
        latest, failure = _attempt(lambda: checkpoints.at(number))
        if failure:
            failure = f"process {accelerator.process_index}: {failure}: all processes must see one folder"
    _raise_first(gather_object([failure]))
    return latest


def _attempt(find: Callable[[], Any]) -> list[Any]:
    """[result, None], or [None, message] of a UserError."""
    try:
        return [find(), None]
    except UserError as error:
        return [None, str(error)]


def _raise_first(errors: Sequence[str | None]) -> None:
    if errors := [error for error in errors if error]:
        raise UserError(errors[0])


class Distributed:
    """The processes of one run, as one of them sees it; with `shards` the network in training is spread, by FSDP2."""

    def __init__(self, *, shards: bool = False) -> None:
        self.shards = shards
        self.accelerator = make_accelerator()
        if shards and self.accelerator.num_processes == 1:
            raise UserError("sharding needs several processes: start them with torchrun, or leave --shard")

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process, which alone writes."""
        return self.accelerator.is_main_process

    def on_main_process(self, find: Callable[[], Result]) -> Result:
        """The result of `find` in the first process, or its UserError, in all of them."""
        if self.accelerator.num_processes == 1:
            return find()
        outcome: list[Any] = [None, None]
        if self.is_main_process:
            outcome = _attempt(find)
        broadcast_object_list(outcome)
        _raise_first(outcome[1:])
        return cast(Result, outcome[0])

    def on_every_process(self, work: Callable[[int, int], None]) -> None:
        """Call work(index, number of processes) in every process and wait; a UserError of one is raised in all."""
        _, failure = _attempt(lambda: work(self.accelerator.process_index, self.accelerator.num_processes))
        _raise_first(gather_object([failure]) if self.accelerator.num_processes > 1 else [failure])

    def map_to_main_process(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """[work(0), ..., work(count - 1)] in the first process, [] in the others; each does every n-th, in order."""
        processes = self.accelerator.num_processes
        results = [work(index) for index in range(self.accelerator.process_index, count, processes)]
        if processes == 1:
            return results
        parts: list[Any] | None = [None] * processes if self.is_main_process else None
        torch.distributed.gather_object(results, parts)
        return [parts[index % processes][index // processes] for index in range(count)] if parts else []


def shard(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself, its weights now spread over all processes, block by block."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    for blocks in reversed(lists):  # the innermost first
        for block in blocks:
            if any(parameter.requires_grad for parameter in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each gathered on the CPU; all processes must ask."""
    return {
        name: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()
    }


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor spread as another one is; itself where that is not spread, or of another shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
