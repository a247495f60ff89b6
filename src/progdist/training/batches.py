"""Which examples, and which noise, each update sees: a function of (seed, stage, update, example) alone.

Example n of a global batch has a generator of its own, and a process draws for its own rows. So a resumed run sees
what an uninterrupted one sees, many processes see the batches that one sees, and each draws its share of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from progdist._utils.errors import UserError
from progdist._utils.random import generator, seeds

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


@runtime_checkable
class Streamed(Protocol):
    """Examples that can only be read in their order."""

    def walk(
        self,
        size: int,
        first: int,
        last: int,
        rank: tuple[int, int],
        worker: tuple[int, int],
        position: tuple[int, int],
    ) -> Iterator[tuple[int, list[tuple[Tensor, int]]]]:
        """(update, its examples) of one worker of one process; see `progdist.data.streams`."""
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
        workers: processes that load images and draw noise ahead (0: none).
        guidance: the least and the largest guidance scale; None to draw none.
    """

    images: Examples
    size: int
    seed: int
    stage: int
    flip: bool = False
    labelled: bool = False
    workers: int = 0
    guidance: tuple[float, float] | None = None

    def __call__(self, first: int, last: int, rows: slice) -> Iterator[Batch]:
        """The batches of updates first, ..., last - 1, of which only `rows` are loaded and drawn.

        Yields:
            x (B, C, H, W) in [-1, 1]; eps standard normal, of x's shape; u in [0, 1), float64 (B,), each uniform and
            together evenly spread, so that every batch sees all times (Kingma et al. 2021, arXiv 2107.00630, appendix
            I.1); and where asked for labels (B,) int64, and guidance (B,) float64 in its range, drawn after all else:
            the least scale for one example in five, and one of uniform logarithm for the others.
        """
        if isinstance(self.images, Streamed):
            stream = _Stream(self, self.images, first, last, rows)
            return _unwrapped_errors(DataLoader(stream, batch_size=None, num_workers=self.workers))
        return _unwrapped_errors(
            DataLoader(
                cast(Dataset[Any], _Drawn(self)),
                batch_sampler=_Positions(self, first, last, rows),
                num_workers=self.workers,
                collate_fn=cast(Any, _as_it_is),
                pin_memory=torch.cuda.is_available(),
            )
        )


Position = tuple[int, int, int]
"""(update, row of the global batch, index of the example)."""


@dataclass(frozen=True)
class _Drawn(Dataset[Batch]):
    """Batches by the positions of their rows, as the loader's workers make them."""

    batches: Batches

    def __getitems__(self, positions: list[Position]) -> Batch:
        """The rows of one update, with their noise and times."""
        rows = [row for _, row, _ in positions]
        return self.draw(positions[0][0], rows, [self.batches.images[index] for _, _, index in positions])

    def draw(self, update: int, rows: Sequence[int], examples: Sequence[tuple[Tensor, int]]) -> Batch:
        """Examples of the rows of one update, with their noise and times."""
        batches = self.batches
        start = torch.rand((), generator=generator(batches.seed, batches.stage, update), dtype=torch.float64)
        u = (start + torch.tensor(rows, dtype=torch.float64) / batches.size).remainder(1)
        x, eps = torch.stack([example for example, _ in examples]), torch.empty(len(rows), *batches.images.shape)
        draw, guidance = torch.Generator(), torch.empty(len(rows), dtype=torch.float64)
        for number, (seed, noise) in enumerate(
            zip(seeds(rows, batches.seed, batches.stage, update), eps.unbind(), strict=True)
        ):
            draw.manual_seed(seed)
            noise.normal_(generator=draw)
            if batches.flip and torch.rand((), generator=draw) < 0.5:
                x[number] = x[number].flip(-1)
            if batches.guidance:
                low, high = map(log, batches.guidance)
                guidance[number].uniform_(low - (high - low) / 4, high, generator=draw).clamp_(min=low).exp_()
        labels = {"labels": torch.tensor([label for _, label in examples])} if batches.labelled else {}
        return {"x": x, "eps": eps, "u": u} | labels | ({"guidance": guidance} if batches.guidance else {})


@dataclass(frozen=True)
class _Stream(IterableDataset[Batch]):
    """Batches of examples that can only be read in their order; each worker makes every n-th."""

    batches: Batches
    examples: Streamed
    first: int
    last: int
    rows: slice

    def __iter__(self) -> Iterator[Batch]:
        batches, rows, info = self.batches, range(self.batches.size)[self.rows], get_worker_info()
        rank = rows.start // len(rows), batches.size // len(rows)
        worker = (info.id, info.num_workers) if info else (0, 1)
        position = batches.seed, batches.stage
        for update, examples in self.examples.walk(len(rows), self.first, self.last, rank, worker, position):
            yield _Drawn(batches).draw(update, rows, examples)


def _as_it_is(batch: Batch) -> Batch:
    """What is loaded is a batch."""
    return batch


def _unwrapped_errors(loader: Iterable[Batch]) -> Iterator[Batch]:
    """A loader whose workers' complaints are the one line that they were, without the trace torch wraps them in."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


class _Positions(Sampler[list[Position]]):
    """The rows of each update: example n of update k is number k * size + n of a walk through shuffled epochs."""

    def __init__(self, batches: Batches, first: int, last: int, rows: slice) -> None:
        self.batches, self.updates, self.rows = batches, range(first, last), rows

    def __len__(self) -> int:
        return len(self.updates)

    def __iter__(self) -> Iterator[list[Position]]:
        rows = range(self.batches.size)[self.rows]
        for update in self.updates:
            indices = self._indices(update * self.batches.size + rows.start, len(rows))
            yield [(update, row, index) for row, index in zip(rows, indices, strict=True)]

    def _indices(self, first: int, count: int) -> list[int]:
        """The indices of examples number first, first + 1, ... of the walk."""
        batches, indices = self.batches, list[int]()
        while len(indices) < count:
            epoch, start = divmod(first + len(indices), len(batches.images))
            order = _order(len(batches.images), batches.seed, batches.stage, epoch)
            indices += order[start : start + count - len(indices)].tolist()
        return indices


@lru_cache(maxsize=4)
def _order(count: int, seed: int, stage: int, epoch: int) -> Tensor:
    """The order of one epoch."""
    return torch.randperm(count, generator=generator(seed, stage, epoch, 1))
