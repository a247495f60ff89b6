"""Several processes in one run: the main process reads, decides and writes, and broadcasts what it found.

Started alone there is one process. Under torchrun or `accelerate launch` the processes share batches, gradients
and samples; the folder of the run must be one that all of them see.
"""

from collections.abc import Callable, Mapping
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

Found = TypeVar("Found")


WAIT = timedelta(hours=2)
"""How long a process waits for the others, e.g. while the first one measures; nccl's own 10 minutes can be too few."""


def make_accelerator() -> Accelerator:
    """accelerate's view of this process, whatever its environment variables say of precision and accumulation.

    Both are ours: the training loop autocasts to the recipe's precision and accumulates gradients itself. Processes
    wait for each other for up to WAIT.
    """
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )


def load_agreed_checkpoint(
    checkpoints: Checkpoints, accelerator: Accelerator, notify: Callable[[str], None] = lambda text: None
) -> Checkpoint | None:
    """The newest whole checkpoint that the first process sees, read by all; None where it sees none.

    Raises:
        UserError: in all processes, if one of them cannot read that checkpoint.
    """
    latest = checkpoints.latest(notify) if accelerator.is_main_process else None
    if accelerator.num_processes == 1:
        return latest
    update: list[int | None] = [latest.update if latest else None]
    broadcast_object_list(update)
    problem = None
    if update[0] is not None and latest is None:
        try:
            latest = checkpoints.at(update[0])
        except UserError as error:
            problem = f"process {accelerator.process_index}: {error}: all processes must see one folder"
    problems = [outcome for outcome in gather_object([problem]) if outcome]
    if problems:
        raise UserError(problems[0])
    return latest


class Distributed:
    """The processes of one run, as one of them sees it.

    Attributes:
        accelerator: where this process computes, in the precision that the recipe says.
        shards: whether the network in training is spread over the processes, by FSDP2.

    Raises:
        UserError: there is nothing to spread it over.
    """

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

    def on_main_process(self, find: Callable[[], Found]) -> Found:
        """What the first process finds; the others wait for it.

        Raises:
            UserError: in all processes, if the first one met it.
        """
        if self.accelerator.num_processes == 1:
            return find()
        outcome: list[Any] = [None, None]
        if self.is_main_process:
            try:
                outcome[0] = find()
            except UserError as error:
                outcome[1] = str(error)
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return cast(Found, outcome[0])

    def on_every_process(self, work: Callable[[int, int], None]) -> None:
        """Have every process do its share, work(its number, how many there are), and wait for the others.

        Raises:
            UserError: in all processes, if one of them met it.
        """
        problem = None
        try:
            work(self.accelerator.process_index, self.accelerator.num_processes)
        except UserError as error:
            problem = str(error)
        problems = gather_object([problem]) if self.accelerator.num_processes > 1 else [problem]
        if found := [problem for problem in problems if problem]:
            raise UserError(found[0])

    def map_to_main_process(self, work: Callable[[int], Found], count: int) -> list[Found]:
        """[work(0), ..., work(count - 1)] in the first process, [] in the others; each does every n-th, in order."""
        number, index = self.accelerator.num_processes, self.accelerator.process_index
        mine = [work(number_of_work) for number_of_work in range(index, count, number)]
        if number == 1:
            return mine
        parts: list[Any] | None = [None] * number if self.is_main_process else None
        torch.distributed.gather_object(mine, parts)
        return [parts[index % number][index // number] for index in range(count)] if parts else []


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
