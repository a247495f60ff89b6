"""Examples in PyTorch's usual forms, as (tensor, {name: condition}) pairs of one shape.

    x                        rows of a tensor or array (N, ...), items of a data set or list
    (x,)  (x, label)         a tuple, as from TensorDataset; the label is a number or a tensor, of any type and shape
    (x, {"name": value})     conditions by the names under which the network takes them
    {"x": x, "name": value}  the same as one dictionary

from a map-style data set, an iterable, which is kept in memory, or a DataLoader; and as columns (N, ...) in the last
two forms, or a TensorDataset. Other data raise a UserError that names them.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from os import PathLike
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from progdist._utils.errors import UserError
from progdist.data.formats import seems_unit
from progdist.data.images import Images, split_indices
from progdist.training.batches import (
    Batch,
    Streamed,
    as_condition,
    check_names,
    collate,
    first_not_finite,
    whole_as_int64,
)

Notify = Callable[[str], None]
LOOKED_AT = 16  # examples of a data set whose values are checked; columns are checked whole
MOST, MOST_NUMBERS = 1_000_000, 2**31  # most examples kept of an iterable, and most numbers in them: 8 GiB
CHUNK = 2**20  # numbers of a column that are checked together
UNSCALED = 16.0  # larger values are taken for unscaled pixels


class Parts(NamedTuple):
    """The parts of one example, or of all as columns."""

    x: Any  # the data
    label: Any = None  # a condition without a name; None if there is none
    conditions: Mapping[str, Any] = {}


class ExampleData(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Examples of any form (see the module), each float32 of one shape, with its conditions by name.

    `names` are the names of the conditions, and `labelled` says whether examples have a label without a name.

    Args:
        data: examples in any form.
        label: the condition's name for the examples' label; None if the network takes none.
        notify: called with what is ignored, and with warnings.

    Raises:
        UserError: there are no examples, or one has another form, type or shape, or lacks a required label.
    """

    def __init__(self, data: Any, label: str | None = None, notify: Notify = lambda text: None) -> None:  # noqa: ANN401
        self.label, self.items = label, _items(_columns(data, label), notify)
        self.indices: Tensor | None = None  # the items in this part; None for all
        if not len(self.items):
            raise UserError("there are no data: give at least one example")
        first = self._parts(0)
        self.labelled = first.label is not None
        x, conditions = self._pair(0)
        self.shape, self.names = tuple(x.shape), frozenset(conditions)
        check_names(self.names)
        if not self.shape:
            raise UserError("an example is a single number, expected a tensor: give the data as (N, 1)")
        if isinstance(self.items, _Columns):
            self.items.check_finite()
        elif isinstance(self.items, list):  # in memory; a data set is checked as its batches are read
            self._check_finite()
        if not isinstance(data, Images):
            _note_range(self._values(), notify)

    def __len__(self) -> int:
        return len(self.items) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One example and its conditions."""
        index = index if self.indices is None else int(self.indices[index])
        tensor, conditions = self._pair(index)
        if tuple(tensor.shape) != self.shape:
            raise UserError(f"example {index} is {tuple(tensor.shape)}, the first is {self.shape}: give all one shape")
        if odd := conditions.keys() ^ self.names:
            raise UserError(f"some examples have the condition {min(odd)!r} and others do not: give it to all")
        return tensor, conditions

    @property
    def at_once(self) -> bool:
        """Whether several examples can be read at the cost of one."""
        return isinstance(self.items, _Columns)

    def rows(self, indices: Sequence[int]) -> Batch:
        """The examples at these indices as one batch, as `collate` makes it."""
        if not self.at_once:
            return collate([self[index] for index in indices])
        places = torch.as_tensor(indices)
        parts = self.items[places if self.indices is None else self.indices[places]]
        named = {name: whole_as_int64(as_condition(name, rows)) for name, rows in self._named(parts).items()}
        return {"x": _tensor(parts.x, 0), **named}

    def split(self, count: int, seed: int) -> tuple["ExampleData", "ExampleData"]:
        """(all but `count`, those `count`), chosen by the seed; a UserError if either would be empty."""
        parts = split_indices(len(self), count, seed, f"the data hold {len(self)} examples")
        chosen = copy(self), copy(self)
        for part, indices in zip(chosen, parts, strict=True):
            part.indices = indices if self.indices is None else self.indices[indices]
        return chosen

    def _check_finite(self) -> None:
        """Raise a UserError for the first example that is not finite."""
        for index in range(len(self.items)):
            if first_not_finite(self._pair(index)[0].flatten()) is not None:
                raise UserError(f"example {index} of the data is not finite: remove or replace it")

    def _parts(self, index: int) -> Parts:
        parts = _parted(self.items[index], index)
        return parts._replace(label=None) if isinstance(self.items, Images) and self.items.labels is None else parts

    def _pair(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        parts = self._parts(index)
        named = self._named(parts)
        if self.label and self.label not in named:
            raise UserError(
                f"label={self.label!r} requires a label for every example, and example {index} has none: give "
                "(tensor, label) pairs, or remove label"
            )
        where = f" of example {index}"
        return _tensor(parts.x, index), {name: as_condition(name, value, where) for name, value in named.items()}

    def _named(self, parts: Parts) -> dict[str, Any]:
        """The conditions under the network's names; an unnamed label gets the name `label`, or is dropped."""
        name = self.label
        named = {name if name and each == "labels" else each: value for each, value in parts.conditions.items()}
        return {**named, name: parts.label} if name and parts.label is not None else named

    def _values(self) -> Tensor:
        """Values of the examples to check: of columns the smallest and the largest."""
        if isinstance(self.items, _Columns):
            return torch.stack([value for _, rows in self.items.chunks() for value in rows.aminmax()])
        return torch.cat([self._pair(index)[0].flatten() for index in range(min(LOOKED_AT, len(self.items)))])


class _Columns:
    """Examples as columns, tensors or arrays (N, ...)."""

    def __init__(self, parts: Parts) -> None:
        x = _column("x", parts.x)
        label = None if parts.label is None else _column("the label", parts.label)
        self.parts = Parts(x, label, {name: _column(name, values) for name, values in parts.conditions.items()})
        for name, values in {"the label": label, **self.parts.conditions}.items():
            if values is not None and len(values) != len(x):
                raise UserError(f"{name} has {len(values)} rows for {len(x)} examples: give one for each")

    def check_finite(self) -> None:
        """Raise a UserError for the first example that is not finite."""
        for start, rows in self.chunks():
            if (row := first_not_finite(rows)) is not None:
                raise UserError(f"example {start + row} of the data is not finite: remove or replace it")

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first, some rows of the data), so that a mapped file is never in memory as a whole."""
        count = max(1, len(self) * CHUNK // max(1, math.prod(self.parts.x.shape)))
        for start in range(0, len(self), count):
            yield start, _tensor(self.parts.x[start : start + count], start)

    def __len__(self) -> int:
        return len(self.parts.x)

    def __getitem__(self, index: Any) -> Parts:  # noqa: ANN401
        x, label, conditions = self.parts
        rows = {name: _rows_of(values, index) for name, values in conditions.items()}
        return Parts(_rows_of(x, index), None if label is None else _rows_of(label, index), rows)


def _rows_of(column: Any, index: Any) -> Any:  # noqa: ANN401
    """A row, or rows by a tensor of indices; NumPy would take a tensor with one element for a single index."""
    return column[index.numpy() if isinstance(index, Tensor) and not isinstance(column, Tensor) else index]


def _column(name: str, values: Any) -> Any:  # noqa: ANN401
    """Convert a column to a tensor or array of numbers (N, ...). Raise a UserError for anything else."""
    column = values if isinstance(values, Tensor) else np.asarray(values)
    if not isinstance(column, Tensor) and column.dtype.kind not in "biufc":
        raise UserError(f"{name} holds {column.dtype}, expected a tensor or array of numbers, (N, ...)")
    if not column.ndim:
        raise UserError(f"{name} is a single number, expected one row per example, (N, ...)")
    return column.detach() if isinstance(column, Tensor) else column


def _columns(data: Any, label: str | None) -> Any:  # noqa: ANN401
    """(x,) and, if a label is named, (x, label) with equally many rows become columns; other data are unchanged."""
    if type(data) is not tuple or not all(isinstance(each, Tensor | np.ndarray) for each in data):
        return data
    rows = {len(each) for each in data if each.ndim}
    if data and data[0].ndim > 1 and len(rows) == 1 and len(data) <= (2 if label else 1):
        return _Columns(Parts(*data))
    return data


def _items(data: Any, notify: Notify) -> Any:  # noqa: ANN401  (whatever has a length and items)
    """An object with a length and items: columns, a data set, or a list of an iterable's items."""
    if isinstance(data, _Columns):
        return data
    if isinstance(data, DataLoader):
        return _of_loader(data, notify)
    if isinstance(data, str | bytes | PathLike):
        raise UserError(
            f"data is a {type(data).__name__}, expected tensors or a data set: load images with "
            f"progdist.load_images({data!r})"
        )
    if isinstance(data, Mapping):
        return _Columns(_parted(data, None))
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        return _Columns(Parts(data[0], None, data[1]))
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return _Columns(Parts(data))
    if type(data) is TensorDataset and len(data.tensors) in (1, 2):
        x, label = (*data.tensors, None)[:2]
        return _Columns(Parts(x, label))
    if isinstance(data, Streamed):
        notify(f"warning: data is a stream: only its first {len(data)} examples are used")  # pyright: ignore
    if not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return data
    if not hasattr(data, "__iter__"):
        raise UserError(f"data is a {type(data).__name__}, expected tensors, a data set or an iterable of examples")
    return _kept(cast(Iterable[Any], data), notify)


def _kept(examples: Iterable[Any], notify: Notify) -> list[Any]:
    """An iterable's items, in memory; of one that may not end the first MOST, or as many as memory may hold."""
    rest = iter(examples)
    kept = list(itertools.islice(rest, 1))
    first = _parted(kept[0], 0).x if kept else ()
    numbers = first.numel() if isinstance(first, Tensor) else np.size(first)
    most = min(MOST, max(1, MOST_NUMBERS // max(1, numbers)))
    kept += itertools.islice(rest, most)
    if len(kept) > most:
        notify(f"warning: data is an iterable of more than {most:,} examples: the first {most:,} are kept and used")
    return kept[:most]


def _of_loader(loader: DataLoader[Any], notify: Notify) -> Any:  # noqa: ANN401
    """The data set of a loader, or the contents of its batches if it makes them in its own way."""
    sampler, whole = loader.sampler, len(loader.dataset) if hasattr(loader.dataset, "__len__") else None  # pyright: ignore
    ordered = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == whole
    )
    batches = loader.batch_sampler
    plain = batches is None or (type(batches) is BatchSampler and batches.sampler is sampler)
    ordered = plain and (ordered or isinstance(loader.dataset, IterableDataset))
    if loader.collate_fn is default_collate and ordered:
        notify("data is a DataLoader: its data set is used, with the batch size batch= and the order of seed=")
        return _items(loader.dataset, notify)
    notify("warning: data is a DataLoader with its own sampler or collate_fn: one pass over it is kept in memory")
    batched = loader.batch_sampler is not None
    return _kept((example for batch in loader for example in (_rows(batch) if batched else [batch])), notify)


def _rows(batch: Any) -> Iterator[Any]:  # noqa: ANN401
    """The examples of a batch of any form."""
    if isinstance(batch, Mapping):
        yield from (dict(zip(batch, row, strict=True)) for row in zip(*map(_rows, batch.values()), strict=True))
    elif isinstance(batch, tuple | list) and any(isinstance(part, Tensor | Mapping) for part in batch):
        yield from zip(*map(_rows, batch), strict=True)
    else:
        yield from batch


def _parted(item: Any, index: int | None) -> Parts:  # noqa: ANN401
    """The parts of an item, or of columns if the index is None. Raise a UserError for an unknown form."""
    what = "the data are" if index is None else f"example {index} is"
    if isinstance(item, Parts):
        return item
    if isinstance(item, Mapping):
        if "x" not in item:
            raise UserError(f"{what} a dictionary of {', '.join(map(str, item))[:100]}: name the data 'x'")
        return Parts(item["x"], None, {str(name): value for name, value in item.items() if name != "x"})
    if not isinstance(item, tuple | list) or not item or isinstance(item[0], int | float | np.number):
        return Parts(item)
    if len(item) > 2:
        raise UserError(f'{what} a {type(item).__name__} of {len(item)}, expected (x, label) or (x, {{"name": value}})')
    if len(item) == 2 and isinstance(item[1], Mapping):
        return Parts(item[0], None, item[1])
    if len(item) == 2 and item[1] is None:
        raise UserError(f"{what} a tensor and None: give every example a label, or none")
    return Parts(*item)


def _tensor(x: Any, index: int) -> Tensor:  # noqa: ANN401
    """An example's data, or rows, in float32 on the CPU. Raise a UserError for anything but an array of floats."""
    try:
        tensor = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.array(x))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"example {index} is a {type(x).__name__}, expected a tensor or an array of numbers") from error
    if not tensor.is_floating_point():
        pixels = tensor.dtype == torch.uint8
        remedy = (
            "x.float() / 127.5 - 1 of pixels" if pixels else "them as x.float(), on the scale of the teacher's data"
        )
        raise UserError(f"example {index} is {tensor.dtype}, expected floats, about -1 to 1: give {remedy}")
    return tensor.cpu().float()


def _note_range(values: Tensor, notify: Notify) -> None:
    """Warn of values that look like pixels in [0, 1] or [0, 255], or like unscaled data."""
    low, high = (float(each) for each in values.aminmax())
    if seems_unit(low, high):
        notify("warning: the examples hold values from 0 to 1: if they are pixels, expected -1 to 1, give 2 * x - 1")
    elif max(-low, high) > UNSCALED:
        remedy = (
            "if they are pixels, give x / 127.5 - 1" if low >= 0 else "give them on the scale of the teacher's data"
        )
        notify(f"warning: the examples hold values from {low:.3g} to {high:.3g}, expected about -1 to 1: {remedy}")
