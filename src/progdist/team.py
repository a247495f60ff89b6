"""Several processes at one run: the first of them reads what is there, decides and writes; all know what it found.

Started alone, a process is a team of one. Under torchrun or `accelerate launch` the processes share batches, gradients
and samples; the folder of the run must be one that all of them see.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, gather_object

from progdist._errors import UserError
from progdist.checkpoint import Checkpoint, Checkpoints

Found = TypeVar("Found")


def new_accelerator() -> Accelerator:
    """accelerate's view of this process, whatever its environment variables say of precision and accumulation.

    Both are ours: the recipe's precision is autocast, and microbatches are added up, in the training loop.
    """
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def agreed_checkpoint(
    checkpoints: Checkpoints, accelerator: Accelerator, say: Callable[[str], None] = lambda text: None
) -> Checkpoint | None:
    """The newest whole checkpoint that the first process sees, read by all; None where it sees none.

    Raises:
        UserError: in all processes, if one of them cannot read that checkpoint.
    """
    latest = checkpoints.latest(say) if accelerator.is_main_process else None
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
    problems = [told for told in gather_object([problem]) if told]
    if problems:
        raise UserError(problems[0])
    return latest


class Team:
    """The processes of one run, as one of them sees it.

    Attributes:
        accelerator: where this process computes, in the precision that the recipe says.
        shards: whether the network in training is spread over the processes (see `progdist.sharding`).

    Raises:
        UserError: there is nothing to spread it over.
    """

    def __init__(self, *, shards: bool = False) -> None:
        self.shards = shards
        self.accelerator = new_accelerator()
        if shards and self.accelerator.num_processes == 1:
            raise UserError("sharding needs several processes: start them with torchrun, or leave --shard")

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which alone writes."""
        return self.accelerator.is_main_process

    def decided(self, find: Callable[[], Found]) -> Found:
        """What the first process finds; the others wait for it.

        Raises:
            UserError: in all processes, if the first one met it.
        """
        if self.accelerator.num_processes == 1:
            return find()
        told: list[Any] = [None, None]
        if self.leads:
            try:
                told[0] = find()
            except UserError as error:
                told[1] = str(error)
        broadcast_object_list(told)
        if told[1] is not None:
            raise UserError(told[1])
        return cast(Found, told[0])

    def shared(self, work: Callable[[int], Found], count: int) -> list[Found]:
        """[work(0), ..., work(count - 1)], known to all; each process does every n-th of them."""
        number, index = self.accelerator.num_processes, self.accelerator.process_index
        mine = [(place, work(place)) for place in range(index, count, number)]
        everything = gather_object(mine) if number > 1 else mine
        return [found for _, found in sorted(everything, key=lambda pair: pair[0])]
