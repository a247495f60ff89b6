"""Which examples, and which noise, each update sees: a function of (seed, stage, update, example) alone.

Every number of a global batch is drawn from one generator seeded with (seed, stage, update), and a process keeps its
own rows. So a resumed run sees what an uninterrupted one sees, and many processes see the batches that one sees.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from progdist._utils.errors import UserError
from progdist._utils.random import generator

Batch = dict[str, Tensor]


class Examples(Protocol):
    """Examples of one shape, each with a label."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One, with its label."""
        ...


@dataclass(frozen=True)
class Batches:
    """The batches of one stage.

    Args:
        images: where they come from; each epoch is a new order.
        size: examples in a global batch.
        seed: of the run.
        stage: its place in the run, 0 for the teacher.
        flip: mirror half of the images, left to right.
        labelled: give the labels, too.
        workers: processes that load images ahead (0: none).
    """

    images: Examples
    size: int
    seed: int
    stage: int
    flip: bool = False
    labelled: bool = False
    workers: int = 0

    def __call__(self, first: int, last: int, rows: slice) -> Iterator[Batch]:
        """The batches of updates first, ..., last - 1, of which only `rows` are kept.

        Yields:
            x (B, C, H, W) in [-1, 1]; eps standard normal, of x's shape; u in [0, 1), float64 (B,), each uniform and
            together evenly spread, so that every batch sees all times (Kingma et al. 2021, arXiv 2107.00630, appendix
            I.1); and labels (B,) int64 where asked for.
        """
        positions = _Positions(self, first, last, rows)
        loader = DataLoader(cast(Dataset[Any], self.images), batch_sampler=positions, num_workers=self.workers)
        for update, (x, labels) in enumerate(_unwrapped_errors(loader), first):
            draw = generator(self.seed, self.stage, update)
            start = torch.rand((), generator=draw, dtype=torch.float64)
            u = (start + torch.arange(self.size, dtype=torch.float64) / self.size).remainder(1)[rows]
            mirrored = torch.rand(self.size, generator=draw)[rows] < 0.5
            eps = torch.randn(self.size, *self.images.shape, generator=draw)[rows]
            if self.flip:
                x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
            yield {"x": x, "eps": eps, "u": u} | ({"labels": labels} if self.labelled else {})


def _unwrapped_errors(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """A loader whose workers' complaints are the one line that they were, without the trace torch wraps them in."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


class _Positions(Sampler[list[int]]):
    """The indices of each update: example n of update k is number k * size + n of a walk through shuffled epochs."""

    def __init__(self, batches: Batches, first: int, last: int, rows: slice) -> None:
        self.batches, self.updates, self.rows = batches, range(first, last), rows

    def __len__(self) -> int:
        return len(self.updates)

    def __iter__(self) -> Iterator[list[int]]:
        batches, count = self.batches, len(self.batches.images)
        for update in self.updates:
            positions_in_walk = range(update * batches.size, (update + 1) * batches.size)[self.rows]
            epochs = (divmod(position, count) for position in positions_in_walk)
            yield [int(_order(count, batches.seed, batches.stage, epoch)[index]) for epoch, index in epochs]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, stage: int, epoch: int) -> Tensor:
    """The order of one epoch."""
    return torch.randperm(count, generator=generator(seed, stage, epoch, 1))
