"""Which examples, and which noise, each update sees: a function of (seed, stage, update, example) alone.

Example n of a global batch has a generator of its own, and a process draws for its own rows. So a resumed run sees
what an uninterrupted one sees, many processes see the batches that one sees, and each draws its share of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from progdist._utils.errors import UserError
from progdist._utils.random import generator, seeds

Batch = dict[str, Tensor]
Condition = int | Mapping[str, Tensor | float]
"""An example's own condition: its label, or tensors and numbers by name, e.g. {"labels": 3, "frame": tensor}."""

Example = tuple[Tensor, Condition]
_OF_LOSSES = ("student", "teacher", "self_teacher", "steps", "substeps", "weighting", "z", "t")
RESERVED = ("x", "eps", "u", "guidance", *_OF_LOSSES)  # names that no condition of an example may have


class Examples(Protocol):
    """Examples of one shape, each with its condition."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """One example and its condition."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """Examples that can only be read in their order."""

    def walk(
        self, size: int, updates: range, rank: tuple[int, int], worker: tuple[int, int], position: tuple[int, int]
    ) -> Iterator[tuple[int, Sequence[Example]]]:
        """(update, its examples) of one worker of one process; see `progdist.data.streams`."""
        ...


def collate(examples: Sequence[Example]) -> Batch:
    """The examples (B, ...) as `x`, and their conditions by name: (B, ...) each, a label as `labels` (B,).

    Whole numbers become int64; floats keep their precision, and a Python float has torch's default.

    Raises:
        UserError: a condition has a reserved name, or the examples' conditions differ in name or shape.
    """
    conditions = [each if isinstance(each, Mapping) else {"labels": each} for _, each in examples]
    names = conditions[0].keys()
    if reserved := sorted(names & set(RESERVED)):
        raise UserError(f"an example has the condition {reserved[0]!r}, a name that training uses itself: rename it")
    if odd := next((each.keys() ^ names for each in conditions if each.keys() != names), None):
        raise UserError(f"some examples of a batch have the condition {min(odd)!r} and others do not: give it to all")
    batch = {"x": torch.stack([example for example, _ in examples])}
    for name in names:
        values = [torch.as_tensor(each[name]) for each in conditions]
        if shapes := sorted({tuple(value.shape) for value in values} - {tuple(values[0].shape)}):
            raise UserError(f"condition {name!r} is {tuple(values[0].shape)} and {shapes[0]}: give all one shape")
        stacked = torch.stack(values)
        batch[name] = stacked if stacked.is_floating_point() or stacked.dtype == torch.bool else stacked.long()
    return batch


@dataclass(frozen=True)
class Batches:
    """The batches of one stage."""

    images: Examples  # the examples; each epoch is a new order
    size: int  # examples in a global batch
    seed: int  # of the run
    stage: int  # its place in the run, 0 for the teacher
    flip: bool = False  # mirror half of the images, left to right
    workers: int = 0  # processes that load images and draw noise ahead (0: none)
    # further random numbers of each example by name, each a function of its generator -> float64 ()
    draws: Mapping[str, Callable[[torch.Generator], Tensor]] = field(default_factory=dict)

    def __call__(self, first: int, last: int, rows: slice) -> Iterator[Batch]:
        """The batches of updates first, ..., last - 1, of which only `rows` are loaded and drawn.

        Yields:
            x (B, C, H, W) in [-1, 1]; eps standard normal, of x's shape; u in [0, 1), float64 (B,), each uniform and
            together evenly spread, so that every batch sees all times (Kingma et al. 2021, arXiv 2107.00630, appendix
            I.1); the examples' conditions, as in `collate`; and `draws`, float64 (B,) each, drawn after all else.
        """
        if isinstance(self.images, Streamed):
            stream = _Stream(self, self.images, range(first, last), rows)
            return _unwrapped_errors(DataLoader(stream, batch_size=None, num_workers=self.workers))
        walk, pinned = _Walk(self, range(self.size)[rows]), torch.cuda.is_available()
        updates = range(first, last)
        return _unwrapped_errors(
            DataLoader(walk, batch_size=None, sampler=updates, num_workers=self.workers, pin_memory=pinned)
        )

    def draw(self, update: int, rows: Sequence[int], examples: Sequence[Example]) -> Batch:
        """The batch of some rows of one update, whose examples these are, with their noise and times."""
        start = torch.rand((), generator=generator(self.seed, self.stage, update), dtype=torch.float64)
        u = (start + torch.tensor(rows, dtype=torch.float64) / self.size).remainder(1)
        batch = collate(examples)
        x, eps = batch["x"], torch.empty(len(rows), *self.images.shape)
        drawn = {name: torch.empty(len(rows), dtype=torch.float64) for name in self.draws}
        row_generator = torch.Generator()
        for index, seed in enumerate(seeds(rows, self.seed, self.stage, update)):
            row_generator.manual_seed(seed)
            eps[index].normal_(generator=row_generator)
            if self.flip and torch.rand((), generator=row_generator) < 0.5:
                x[index] = x[index].flip(-1)
            for name, draw in self.draws.items():
                drawn[name][index] = draw(row_generator)
        return batch | {"eps": eps, "u": u} | drawn


@dataclass(frozen=True)
class _Walk(Dataset[Batch]):
    """Batches by their updates: example n of update k is number k * size + n of a walk through shuffled epochs."""

    batches: Batches
    rows: range

    def __getitem__(self, update: int) -> Batch:
        first = update * self.batches.size
        return self.batches.draw(update, self.rows, [self._example(first + row) for row in self.rows])

    def _example(self, number: int) -> Example:
        batches = self.batches
        epoch, place = divmod(number, len(batches.images))
        return batches.images[int(_order(len(batches.images), batches.seed, batches.stage, epoch)[place])]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, stage: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, stage, epoch, 1))


@dataclass(frozen=True)
class _Stream(IterableDataset[Batch]):
    """Batches of examples that can only be read in their order; each worker makes every n-th."""

    batches: Batches
    examples: Streamed
    updates: range
    rows: slice

    def __iter__(self) -> Iterator[Batch]:
        batches, rows, info = self.batches, range(self.batches.size)[self.rows], get_worker_info()
        rank = rows.start // len(rows), batches.size // len(rows)
        worker = (info.id, info.num_workers) if info else (0, 1)
        position = batches.seed, batches.stage
        for update, examples in self.examples.walk(len(rows), self.updates, rank, worker, position):
            yield batches.draw(update, rows, examples)


def _unwrapped_errors(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The loader's batches; an error of its workers is the one line that it was, without torch's trace."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
