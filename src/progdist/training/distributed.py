"""Several processes in one run: the main process reads, decides and writes, and broadcasts the result.

Without a launcher there is one process. Under torchrun or `accelerate launch` the processes share batches, gradients
and samples, and all must see the run's folder. accelerate starts the process group; its settings of precision and
accumulation, which belong to the whole program, are neither read nor changed.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist.compute.precision import Resolved, resolve
from progdist.training.checkpoint import Checkpoint, Checkpoints

Result = TypeVar("Result")
WAIT = timedelta(hours=2)
"""How long a process waits for the others, e.g. while the first one measures; nccl's own 10 minutes can be too few."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training as seen by one of them, and its device; by default one process on the CPU."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_processes: int = 1
    process_index: int = 0

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process, the only one that writes."""
        return self.process_index == 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The "sum" or "mean" of all processes' tensors."""
        if self.num_processes == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total / self.num_processes if reduction == "mean" else total

    def agree(self, value: str, message: str) -> None:
        """Raise a UserError in all processes unless they all have the same value."""
        if self.num_processes == 1:
            return
        values = _gathered(value)
        if odd := [number for number, other in enumerate(values) if other != values[0]]:
            raise UserError(message.format(process=odd[0]))


SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables in which launchers set the number of processes."""


def join_processes() -> Processes:
    """Join the processes started by torchrun, `accelerate launch`, MPI or the program; else run alone."""
    if (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):  # by accelerate, or by the program itself
        on_cpu = "nccl" not in torch.distributed.get_backend()
        device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
        return Processes(device, torch.distributed.get_world_size(), torch.distributed.get_rank())
    launched = os.environ.get("LOCAL_RANK") or any(os.environ.get(name, "") not in ("", "1") for name in SIZES)
    on_cpu = not torch.accelerator.is_available() or _is_set("ACCELERATE_USE_CPU")
    if launched or PartialState._shared_state:
        state = PartialState(cpu=on_cpu, timeout=WAIT)
        return Processes(cast(torch.device, state.device), state.num_processes, state.process_index)
    device = None if on_cpu else torch.accelerator.current_accelerator()
    return Processes(device or torch.device("cpu"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def checksum_of(network: nn.Module) -> str:
    """The SHA-256 of a network's weights and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue  # a module's own state, not a weight
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_agreed_checkpoint(checkpoints: Checkpoints, processes: Processes) -> Checkpoint | None:
    """The newest whole checkpoint of the first process, read by all; None if it sees none.

    Raises:
        UserError: in all processes, if one of them cannot read the checkpoint, or it has a later format.
    """
    latest, failure = _attempt(checkpoints.latest) if processes.is_main_process else (None, None)
    _raise_first(_gathered(failure) if processes.num_processes > 1 else [failure])
    if processes.num_processes == 1:
        return latest
    update: list[int | None] = [latest.update if latest else None]
    torch.distributed.broadcast_object_list(update)
    number, failure = update[0], None
    if number is not None and latest is None:
        latest, failure = _attempt(lambda: checkpoints.at(number))
        if failure:
            failure = f"process {processes.process_index}: {failure}: all processes must see the same folder"
    _raise_first(_gathered(failure))
    return latest


def _attempt(find: Callable[[], Any]) -> list[Any]:
    """[result, None], or [None, message] of a UserError."""
    try:
        return [find(), None]
    except UserError as error:
        return [None, str(error)]


def _gathered(value: Result) -> list[Result]:
    """The values of all processes, in order."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _raise_first(errors: Sequence[str | None]) -> None:
    if errors := [error for error in errors if error]:
        raise UserError(errors[0])


class Distributed:
    """The processes of one run as seen by one of them; with `shards` FSDP2 shards the network in training."""

    def __init__(self, *, shards: bool = False) -> None:
        self.shards = shards
        self.processes = join_processes()
        if shards and self.processes.num_processes == 1:
            raise UserError("sharding requires several processes: start them with torchrun, or remove --shard")

    def resolve(self, precision: Precision) -> Resolved:
        """Resolve a precision for all processes: `auto` is bf16 only if every one of them selects it."""
        ours = torch.tensor(float(resolve(precision, self.device) == "bf16"), device=self.device)
        return "bf16" if self.processes.reduce(ours, "mean") == 1 else "float32"

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.processes.device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process, the only one that writes."""
        return self.processes.is_main_process

    def on_main_process(self, find: Callable[[], Result]) -> Result:
        """The result of `find` in the first process, or its UserError, in all processes."""
        if self.processes.num_processes == 1:
            return find()
        outcome: list[Any] = [None, None]
        if self.is_main_process:
            outcome = _attempt(find)
        torch.distributed.broadcast_object_list(outcome)
        _raise_first(outcome[1:])
        return cast(Result, outcome[0])

    def on_every_process(self, work: Callable[[int, int], None]) -> None:
        """Call work(index, number of processes) in every process and wait; a UserError of one is raised in all."""
        _, failure = _attempt(lambda: work(self.processes.process_index, self.processes.num_processes))
        _raise_first(_gathered(failure) if self.processes.num_processes > 1 else [failure])

    def map_to_main_process(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """[work(0), ..., work(count - 1)] in the first process, [] in the others; each does every n-th, in order."""
        processes = self.processes.num_processes
        results = [work(index) for index in range(self.processes.process_index, count, processes)]
        if processes == 1:
            return results
        parts: list[Any] | None = [None] * processes if self.is_main_process else None
        torch.distributed.gather_object(results, parts)
        return [parts[index % processes][index // processes] for index in range(count)] if parts else []


def shard(network: nn.Module, device: torch.device, whole: Collection[nn.Parameter] = ()) -> nn.Module:
    """The network itself, its weights sharded over all processes block by block, except those that stay `whole`."""
    kept: dict[str, Any] = {"ignored_params": set(whole)} if whole else {}  # the option of torch 2.7
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    for blocks in reversed(lists):  # innermost first
        for block in blocks:
            if any(parameter.requires_grad for parameter in block.parameters()):
                fully_shard(block, mesh=mesh, **kept)
    fully_shard(network, mesh=mesh, **kept)
    return network


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, gathered on the CPU; call it in all processes."""
    return {
        name: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()
    }


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor like another one; return it unchanged if that is not sharded or has another shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
