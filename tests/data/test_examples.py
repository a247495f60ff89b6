"""Examples in every form that PyTorch people have them: the same numbers, each beside its own conditions."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import itertools
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from progdist import UserError
from progdist.data.examples import ExampleData
from progdist.data.sources import load_images
from progdist.training.batches import Batches

X = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 10
F = torch.arange(40) / 39 * 0.99 + 0.001
V = torch.stack([F, -F, F**2], 1)
IMAGE = torch.arange(40 * 12.0).reshape(40, 3, 2, 2)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


class StreamOfLength(Stream):
    def __len__(self) -> int:
        return 40


class Mapped(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": X[index], "c": F[index]}


@pytest.mark.parametrize(
    "form",
    [
        lambda: X,
        lambda: X.double(),
        lambda: X.clone().requires_grad_(),
        lambda: X.numpy(),
        lambda: X.double().numpy(),
        lambda: list(X),
        lambda: list(X.numpy()),
        lambda: X.double().tolist(),
        lambda: [tuple(row) for row in X.double().tolist()],
        lambda: [(row,) for row in X],
        lambda: (row for row in X),
        lambda: iter(X),
        lambda: [{"x": row} for row in X],
        lambda: {"x": X},
        lambda: TensorDataset(X),
        lambda: DataLoader(X, batch_size=7),
        lambda: DataLoader(TensorDataset(X), batch_size=8, shuffle=True),
        lambda: DataLoader(TensorDataset(X), batch_size=8, collate_fn=lambda rows: torch.stack([x for (x,) in rows])),
        lambda: DataLoader(TensorDataset(X), batch_size=None),
        lambda: Stream(),
        lambda: StreamOfLength(),
        lambda: DataLoader(Stream(), batch_size=3),
    ],
)
def test_every_form_of_data_is_read(form: Callable[[], Any]) -> None:
    data = ExampleData(form())
    assert (len(data), data.shape, data.names, data.labelled) == (40, (12,), frozenset(), False)
    x, conditions = data[3]
    assert x.dtype == torch.float32
    assert not conditions
    assert torch.equal(x, X[3])
    assert torch.equal(data.rows([5, 0, 5])["x"], X[[5, 0, 5]])


@pytest.mark.parametrize("values", [Y, F, V, IMAGE, F.double(), F.bfloat16(), Y > 4, torch.complex(F, F)])
@pytest.mark.parametrize(
    "form",
    [
        lambda c: (TensorDataset(X, c), "c"),
        lambda c: (list(zip(X, c, strict=True)), "c"),
        lambda c: ([list(pair) for pair in zip(X, c, strict=True)], "c"),
        lambda c: ([(x, {"c": each}) for x, each in zip(X, c, strict=True)], None),
        lambda c: ([(x, {"labels": each}) for x, each in zip(X, c, strict=True)], "c"),
        lambda c: ([{"x": x, "c": each} for x, each in zip(X, c, strict=True)], None),
        lambda c: ({"x": X, "c": c}, None),
        lambda c: ((X, {"c": c}), None),
        lambda c: (DataLoader(TensorDataset(X, c), batch_size=8), "c"),
        lambda c: (DataLoader([{"x": x, "c": each} for x, each in zip(X, c, strict=True)], batch_size=8), None),
        lambda c: (iter(zip(X, c, strict=True)), "c"),
    ],
)
def test_a_condition_of_any_type_and_shape_is_beside_its_example(
    form: Callable[[Tensor], tuple[Any, str | None]], values: Tensor
) -> None:
    """Its numbers as they are: nothing is cut; whole numbers are int64."""
    data, label = form(values)
    batch = next(Batches(ExampleData(data, label), 16, 0, 1)(0, 1, slice(16)))
    places = torch.cdist(batch["x"], X).argmin(1)
    assert len(set(places.tolist())) == 16
    assert torch.equal(batch["c"], values[places])
    assert batch["c"].dtype == (torch.int64 if values is Y else values.dtype)


def test_several_conditions_at_once() -> None:
    columns = {"x": X.numpy(), "pitch": F.numpy(), "instrument": Y.numpy().astype(np.uint8), "low": IMAGE}
    rows = [{name: values[number] for name, values in columns.items()} for number in range(40)]
    a, b = (next(Batches(ExampleData(data), 16, 3, 1)(0, 1, slice(16))) for data in (columns, rows))
    assert list(a) == ["x", "pitch", "instrument", "low", "eps", "u"]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["instrument"].dtype == torch.int64


def test_columns_make_the_batches_that_examples_one_by_one_make() -> None:
    """Bit for bit, held out and over the end of an epoch, too."""
    whole, single = ExampleData(TensorDataset(X, F), "c"), ExampleData(list(zip(X, F, strict=True)), "c")
    assert whole.at_once
    assert not single.at_once
    for first, second in zip((whole, *whole.split(9, 1)), (single, *single.split(9, 1)), strict=True):
        made = [list(Batches(data, 7, 5, 2)(3, 9, slice(2, 6))) for data in (first, second)]
        for a, b in zip(*made, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loader_that_makes_its_batches_its_own_way_is_read_as_it_makes_them() -> None:
    notes: list[str] = []
    only = torch.zeros(40).index_fill_(0, torch.tensor([3]), 1.0)
    loader = DataLoader(TensorDataset(X, F), batch_size=8, sampler=WeightedRandomSampler(only.tolist(), 40))
    data = ExampleData(loader, "c", notes.append)
    assert all(torch.equal(data[index][0], X[3]) for index in range(40))
    assert "its own sampler or collate_fn: one pass over it is kept in memory" in notes[0]


class OwnBatches(BatchSampler):
    """A subclass may yield anything."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [3, 3]


@pytest.mark.parametrize(
    "batches",
    [
        [[3, 7], [7]],
        BatchSampler(SubsetRandomSampler([3, 7]), 2, drop_last=False),
        BatchSampler([3, 7, 7], 2, drop_last=True),
        OwnBatches(range(40), 2, drop_last=False),
    ],
)
def test_a_batch_sampler_chooses_what_is_read(batches: Any) -> None:  # noqa: ANN401
    """torch then gives the loader a sampler in order, which it does not use."""
    expected = sorted(index for batch in batches for index in batch)
    data = ExampleData(DataLoader(TensorDataset(X), batch_sampler=batches))
    assert sorted(int(torch.cdist(x[None], X).argmin()) for x, _ in map(data.__getitem__, range(len(data)))) == expected


def test_a_batch_sampler_of_all_in_order_is_none() -> None:
    """It is what torch makes of batch_size= and shuffle=."""
    notes: list[str] = []
    data = ExampleData(DataLoader(TensorDataset(X), batch_size=7, shuffle=True, drop_last=True), None, notes.append)
    assert (len(data), data.at_once) == (40, True)
    assert "its data set is used" in notes[0]


@pytest.mark.parametrize("form", [lambda x: x, lambda x: {"x": x}, lambda x: (x,)])
def test_a_file_that_is_mapped_is_never_in_memory_whole(form: Callable[[Any], Any], tmp_path: Path) -> None:
    """Of 64 MB a few are at a time; what is not finite, and the largest number, are found wherever they are."""
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, (2_000_000, 4))
    file[1_999_998, 1] = 300.0
    file.flush()
    notes: list[str] = []
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    data = ExampleData(form(mapped), None, notes.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6
    assert len(data) == 2_000_000
    assert data.rows([1_999_998])["x"].tolist() == [[0, 300, 0, 0]]
    assert "hold values from 0 to 300" in notes[0]
    file[1_999_999, 0] = np.nan
    file.flush()
    with pytest.raises(UserError, match="example 1999999 of the data is not finite"):
        ExampleData(form(mapped))


class Endless(IterableDataset[Any]):
    def __init__(self, item: Any) -> None:  # noqa: ANN401
        self.item = item

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(self.item)


@pytest.mark.parametrize("item", [X[0], X[0].numpy(), (X[0], 3), {"x": X[0], "c": 1.0}])
@pytest.mark.parametrize("form", [lambda data: data, iter, lambda data: DataLoader(data, batch_size=4)])
def test_an_iterable_that_does_not_end_is_read_in_part(
    form: Callable[[Any], Any],
    item: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for most, numbers, expected in ((50, 2**31, 50), (50, 12 * 30, 30), (50, 1, 1)):
        notes: list[str] = []
        monkeypatch.setattr("progdist.data.examples.MOST", most)
        monkeypatch.setattr("progdist.data.examples.MOST_NUMBERS", numbers)
        data = ExampleData(form(Endless(item)), "c" if isinstance(item, tuple) else None, notes.append)
        assert len(data) == expected
        assert f"an iterable of more than {expected} examples: the first {expected} are kept" in notes[-1]


def test_labels_that_nothing_takes_are_known_of() -> None:
    for form in (TensorDataset(X, Y), list(zip(X, Y, strict=True)), load_images("digits")):
        data = ExampleData(form)
        assert data.labelled
        assert not data.names
    named = [(x, {"labels": int(y)}) for x, y in zip(X, Y, strict=True)]
    assert ExampleData(named).names == {"labels"}


@pytest.mark.parametrize(
    ("data", "label", "message"),
    [
        (X, "c", "label='c' requires a label for every example, and example 0 has none"),
        ([(X[0], 1), (X[1],)], "c", "example 1 has none"),
        ([(X[0], None)], "c", "a tensor and None"),
        ([(X[0], "cat")], "c", "condition 'c' of example 0 is a str, expected a number, array or tensor"),
        ([(X[0], {"text": "a cat"})], None, "condition 'text' of example 0 is a str"),
        ([(X[0], {"a": 1.0}), (X[1], {})], None, "some examples have the condition 'a' and others do not"),
        (TensorDataset(X, F, F), "c", r"example 0 is a tuple of 3, expected \(x, label\) or \(x, {\"name\": value}\)"),
        ([{"image": X[0], "label": 1}], None, "a dictionary of image, label: name the data 'x'"),
        ({"x": X, "c": F[:3]}, None, "c has 3 rows for 40 examples"),
        ({"x": X, "c": ["a"] * 40}, None, "c holds <U1, expected a tensor or array of numbers"),
        ({"x": X, "c": 1.0}, None, "c is a single number"),
        (X[:0], None, "no data"),
        (iter(()), None, "no data"),
        (X[:, 0], None, r"a single number, expected a tensor: give the data as \(N, 1\)"),
        ("digits", None, r"data is a str, .* progdist.load_images\('digits'\)"),
        (None, None, "data is a NoneType"),
        (5, None, "data is a int"),
        (["cat"], None, "example 0 is .*, expected"),
        ((X * 0).to(torch.uint8), None, r"torch.uint8, .* x.float\(\) / 127.5 - 1"),
        ((X * 0).long(), None, "torch.int64, expected floats"),
        (X > 0, None, "torch.bool, expected floats"),
        (np.zeros((4, 2), np.uint16), None, "torch.uint16, expected floats"),
        ([X[0], X[1].byte()], None, "example 1 is torch.uint8"),
        (X / 0, None, "is not finite"),
    ],
)
def test_what_cannot_be_used_is_named(data: Any, label: str | None, message: str) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=message) as caught:
        examples = ExampleData(data, label)
        for index in range(len(examples)):
            examples[index]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X.sigmoid(), r"values from 0 to 1: if they are pixels, expected -1 to 1, give 2 \* x - 1"),
        (list(X.sigmoid()), "values from 0 to 1"),
        (255 * X.sigmoid(), "x / 127.5 - 1"),
        (1000 * X, "on the scale of the teacher's data"),
        (X, None),
        (X.clamp(-1, 1), None),
        (torch.zeros(3, 2), None),
        (3 * X.abs(), None),  # positive columns of a table
    ],
)
def test_a_range_that_looks_wrong_is_said(data: Any, message: str | None) -> None:  # noqa: ANN401
    notes: list[str] = []
    ExampleData(data, notify=notes.append)
    assert len(notes) == (message is not None)
    assert message is None or re.search(message, notes[0])
