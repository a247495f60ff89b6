"""Which examples and which noise each update sees: a function of (seed, stage, update, example) alone.

Example n of a global batch has its own generator, and a process draws only for its own rows. So a resumed run sees
what an uninterrupted one sees, and many processes see the same batches as one, each drawing its share.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from progdist._utils.errors import UserError
from progdist._utils.random import SeededWhereDrawn, generator, seeds

Batch = dict[str, Tensor]
Condition = int | Mapping[str, Tensor | float]
"""An example's own condition: its label, or tensors and numbers by name, e.g. {"labels": 3, "frame": tensor}."""

Example = tuple[Tensor, Condition]
_OF_LOSSES = ("student", "teacher", "self_teacher", "steps", "substeps", "weighting", "entries", "z", "t", "options")
_OF_CALLS = ("self", "network", "timestep")
RESERVED = ("x", "eps", "u", "noises", "auxiliaries", "guidance", *_OF_LOSSES, *_OF_CALLS)
"""Names that are reserved, so no condition can use them."""


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
class ByRows(Protocol):
    """Examples that can be read several at once."""

    at_once: bool  # whether that costs less, and draws no random numbers

    def rows(self, indices: Sequence[int]) -> Batch:
        """The examples at these indices, in the form of `collate`."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """Examples that can only be read in order."""

    def walk(
        self, size: int, updates: range, rank: tuple[int, int], worker: tuple[int, int], position: tuple[int, int]
    ) -> Iterator[tuple[int, Sequence[Example]]]:
        """(update, its examples) for one worker of one process; see `progdist.data.streams`."""
        ...


def collate(examples: Sequence[Example]) -> Batch:
    """Stack examples (B, ...) as `x`, and their conditions by name: (B, ...) each, a label as `labels` (B,).

    Integers become int64; floating-point tensors keep their precision, other floats become float32.

    Raises:
        UserError: a condition has a reserved name, or conditions differ in name or shape between examples.
    """
    conditions = [each if isinstance(each, Mapping) else {"labels": each} for _, each in examples]
    names = conditions[0].keys()
    check_names(names)
    if odd := next((each.keys() ^ names for each in conditions if each.keys() != names), None):
        raise UserError(f"some examples of a batch have the condition {min(odd)!r}, others do not: give it to all")
    batch = {"x": torch.stack([example for example, _ in examples])}
    for name in names:
        values = [as_condition(name, each[name]) for each in conditions]
        if shapes := sorted({tuple(value.shape) for value in values} - {tuple(values[0].shape)}):
            raise UserError(
                f"condition {name!r} has shapes {tuple(values[0].shape)} and {shapes[0]}: give all one shape"
            )
        batch[name] = whole_as_int64(torch.stack(values))
    return batch


def check_names(names: Iterable[str]) -> None:
    """Raise a UserError for a condition with a reserved name."""
    if reserved := sorted(set(names) & set(RESERVED)):
        raise UserError(f"condition {reserved[0]!r} of an example has a name reserved for training: rename it")


def as_condition(name: str, value: Any, where: str = "") -> Tensor:  # noqa: ANN401
    """Convert a condition to a tensor on the CPU. Raise a UserError for anything but numbers, e.g. a text or None.

    NumPy arrays and lists of float64 become float32; tensors keep their type.
    """
    try:
        tensor = torch.as_tensor(value).detach().cpu()
        return tensor.float() if tensor.dtype == torch.float64 and not isinstance(value, Tensor) else tensor
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"condition {name!r}{where} is a {type(value).__name__}, expected a number, array or tensor"
        ) from error


def whole_as_int64(values: Tensor) -> Tensor:
    """Convert integers to int64; return anything else unchanged."""
    fractions = values.is_floating_point() or values.is_complex() or values.dtype == torch.bool
    return values if fractions else values.long()


def check_examples_finite(batch: Batch, place: Callable[[int], object]) -> None:
    """Raise a UserError that names the first row (B, ...) that is not finite, by `place`, and its condition."""
    for name, rows in batch.items():
        if rows.is_floating_point() and (row := first_not_finite(rows)) is not None:
            what = "" if name == "x" else f": its {name!r}"
            raise UserError(f"example {place(row)} of the data is not finite{what}: remove or replace it")


def first_not_finite(rows: Tensor) -> int | None:
    """The index of the first row (B, ...) that is not finite, or None."""
    if rows.sum().isfinite():  # finite sum: all finite; huge numbers may overflow
        return None
    finite = rows.flatten(1).isfinite().all(1) if rows.ndim > 1 else rows.isfinite()
    return None if finite.all() else int((~finite).nonzero()[0])


@dataclass(frozen=True)
class Batches:
    """The batches of one stage."""

    images: Examples  # the examples; each epoch is reshuffled
    size: int  # examples in a global batch
    seed: int  # the run's seed
    stage: int  # its place in the run, 0 for the teacher
    flip: bool = False  # mirror half of the images, left to right
    workers: int = 0  # processes that load images and draw noise ahead (0: none)
    # further random numbers of each example by name, each a function of its generator -> float64 ()
    draws: Mapping[str, Callable[[torch.Generator], Tensor]] = field(default_factory=dict)
    noises: int = 0  # further standard normal draws per example

    def __call__(self, first: int, last: int, rows: slice) -> Iterator[Batch]:
        """The batches of updates first, ..., last - 1, loading and drawing only `rows` of them.

        Yields:
            x (B, C, H, W) in [-1, 1]; eps standard normal, with x's shape; u in [0, 1), float64 (B,), each uniform and
            together evenly spread, so that every batch sees all times (Kingma et al. 2021, arXiv 2107.00630, appendix
            I.1); the examples' conditions, as in `collate`; `draws`, float64 (B,) each, drawn next; and, drawn last,
            `noises` (B, noises, C, H, W) if there are any.
        """
        options = {"num_workers": self.workers, "generator": torch.Generator()}  # not the program's global one
        if isinstance(self.images, Streamed):
            stream = _Stream(self, self.images, range(first, last), rows)
            return _unwrapped_errors(DataLoader(stream, batch_size=None, **options))
        walk, pinned = _Walk(self, range(self.size)[rows]), torch.cuda.is_available()
        updates = range(first, last)
        return _unwrapped_errors(DataLoader(walk, batch_size=None, sampler=updates, pin_memory=pinned, **options))

    def draw(self, update: int, rows: Sequence[int], batch: Batch) -> Batch:
        """Add noise and times to some rows of one update, a batch of collated examples."""
        start = torch.rand((), generator=generator(self.seed, self.stage, update), dtype=torch.float64)
        u = (start + torch.tensor(rows, dtype=torch.float64) / self.size).remainder(1)
        x, eps = batch["x"], torch.empty(len(rows), *self.images.shape, dtype=torch.float32)
        drawn = {name: torch.empty(len(rows), dtype=torch.float64) for name in self.draws}
        more = torch.empty(len(rows), self.noises, *self.images.shape, dtype=torch.float32)
        row_generator = torch.Generator()
        noise = zip(eps.unbind(), seeds(rows, self.seed, self.stage, update), strict=True)
        for index, (row, seed) in enumerate(noise):
            row_generator.manual_seed(seed)
            row.normal_(generator=row_generator)
            if self.flip and torch.rand((), generator=row_generator, dtype=torch.float32) < 0.5:
                x[index] = x[index].flip(-1)
            for name, draw in self.draws.items():
                drawn[name][index] = draw(row_generator)
            more[index].normal_(generator=row_generator)
        return batch | {"eps": eps, "u": u} | drawn | ({"noises": more} if self.noises else {})


@dataclass(frozen=True)
class _Walk(Dataset[Batch]):
    """Batches by update: example n of update k is number k * size + n of a walk through shuffled epochs."""

    batches: Batches
    rows: range
    seeded: SeededWhereDrawn = field(default_factory=SeededWhereDrawn)

    def __getitem__(self, update: int) -> Batch:
        """The batch of an update; what examples draw themselves, e.g. for augmentation, also depends on position."""
        batches, first = self.batches, update * self.batches.size
        indices = self._indices(range(first, first + batches.size)[self.rows.start : self.rows.stop])

        def example(place: int) -> Example:
            seed = lambda: seeds([self.rows[place]], batches.seed, batches.stage, update, 1)[0]  # noqa: E731
            return self.seeded(lambda: batches.images[indices[place]], seed)

        images = batches.images
        if isinstance(images, ByRows) and images.at_once:
            examples = images.rows(indices)
        else:
            examples = collate([example(place) for place in range(len(indices))])
        batch = batches.draw(update, self.rows, examples)
        check_examples_finite(batch, lambda row: indices[row])
        return batch

    def _indices(self, numbers: range) -> list[int]:
        """The indices of the examples at these positions of the walk."""
        batches, indices, count = self.batches, [], len(self.batches.images)
        while numbers:
            epoch, place = divmod(numbers.start, count)
            part = numbers[: count - place]
            order = _order(count, batches.seed, batches.stage, epoch)
            indices += order[place : place + len(part)].tolist()
            numbers = numbers[len(part) :]
        return indices


@lru_cache(maxsize=4)
def _order(count: int, seed: int, stage: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, stage, epoch, 1))


@dataclass(frozen=True)
class _Stream(IterableDataset[Batch]):
    """Batches of examples that can only be read in order; each of n workers makes every n-th."""

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
            batch = batches.draw(update, rows, collate(examples))
            check_examples_finite(batch, lambda row, update=update: f"{row} of update {update + 1}")
            yield batch


def _unwrapped_errors(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The loader's batches; a worker's error is reported in its own line, without torch's trace."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
