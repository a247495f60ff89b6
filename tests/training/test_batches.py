"""Batches are a function of their position."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from progdist import UserError
from progdist.data.sources import load_images
from progdist.methods.guidance import Input
from progdist.training.batches import Batches, Condition, Example, collate


def collect(batches: Batches, first: int, last: int, rows: slice) -> dict[str, torch.Tensor]:
    parts = list(batches(first, last, rows))
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def test_batches_are_a_function_of_position() -> None:
    """Started late, or shared out over processes, updates see what one uninterrupted process sees."""
    batches = Batches(load_images("digits"), 12, seed=5, stage=2, flip=True)
    complete = collect(batches, 0, 8, slice(0, 12))
    late = collect(batches, 5, 8, slice(0, 12))
    halves = [collect(batches, 0, 8, slice(6 * part, 6 * part + 6)) for part in (0, 1)]
    for name, values in complete.items():
        assert torch.equal(values[5:], late[name])
        assert torch.equal(values, torch.cat([half[name] for half in halves], 1))
    assert complete["u"].dtype == torch.float64
    others = [Batches(load_images("digits"), 12, seed, stage) for seed, stage in ((6, 2), (5, 3))]
    for other in others:
        assert not torch.equal(collect(other, 0, 1, slice(0, 12))["eps"], complete["eps"][:1])


def test_an_epoch_sees_every_image_once() -> None:
    images = load_images("digits")
    x = collect(Batches(images, 599, 0, 0), 0, 3, slice(0, 599))["x"].flatten(0, 1)
    everything = images.sample(1797, 0)[0]
    assert torch.equal(x.flatten(1).sort(0).values, everything.flatten(1).sort(0).values)
    again = collect(Batches(images, 599, 0, 0), 3, 6, slice(0, 599))["x"].flatten(0, 1)
    assert not torch.equal(x, again)


def test_flips_mirror_about_half() -> None:
    images = load_images("digits")
    straight = collect(Batches(images, 500, 0, 0), 0, 1, slice(0, 500))["x"][0]
    flipped = collect(Batches(images, 500, 0, 0, flip=True), 0, 1, slice(0, 500))["x"][0]
    same = (straight == flipped).flatten(1).all(1)
    assert 200 < int(same.sum()) < 300
    assert torch.equal(flipped[~same], straight[~same].flip(-1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_line_from_any_process(tmp_path: Path, workers: int) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("no picture")
    batches = Batches(load_images(f"folder:{tmp_path}"), 2, 0, 0, workers=workers)
    with pytest.raises(UserError) as caught:
        list(batches(0, 1, slice(0, 2)))
    assert str(caught.value).startswith(str(tmp_path / "2.png"))
    assert "\n" not in str(caught.value)


def test_guidance_is_drawn_after_all_else() -> None:
    """One in five the least, the others of uniform logarithm, the same for any rows, and nothing else changes."""
    images = load_images("digits")
    plain = collect(Batches(images, 256, 0, 1), 0, 8, slice(0, 256))
    batches = Batches(images, 256, 0, 1, draws={"guidance": Input(1.0, 8.0).draw})
    drawn = collect(batches, 0, 8, slice(0, 256))
    assert all(torch.equal(plain[name], drawn[name]) for name in plain)
    assert torch.equal(collect(batches, 3, 4, slice(64, 128))["guidance"][0], drawn["guidance"][3, 64:128])
    guidance = drawn["guidance"].flatten()
    assert guidance.dtype == torch.float64
    assert abs(float((guidance == 1).double().mean()) - 0.2) < 0.03  # three standard errors
    others = guidance[guidance > 1].sort().values.log2() / 3
    even = others - (torch.arange(len(others)) + 0.5) / len(others)
    assert float(even.abs().max()) < 1.63 / len(others) ** 0.5  # Kolmogorov and Smirnov: once in a hundred seeds
    times = torch.stack([drawn["u"].flatten(), guidance])
    assert abs(float(times.corrcoef()[0, 1])) < 0.08  # and without regard to the time


class WithConditions:
    """Twelve examples with conditions of their own."""

    shape = (2,)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Example:
        frame = torch.tensor([index, index + 1], dtype=torch.int32)
        half = torch.full((3, 2), index / 4, dtype=torch.float16)
        return torch.full((2,), float(index)), {"labels": index, "frame": frame, "text": half, "age": index / 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_brings_its_own_conditions(workers: int) -> None:
    """By name, each beside its example: whole numbers as int64, floats in their own precision."""
    batch = next(Batches(WithConditions(), 12, 0, 1, workers=workers)(0, 1, slice(3, 9)))
    n = batch["x"][:, 0]
    assert len(set(n.tolist())) == 6
    assert torch.equal(batch["labels"], n.long())
    assert torch.equal(batch["frame"], torch.stack([n, n + 1], 1).long())
    assert torch.equal(batch["text"], (n / 4).half()[:, None, None].expand(6, 3, 2))
    assert torch.equal(batch["age"], n / 2)
    types = [batch[name].dtype for name in ("labels", "frame", "text", "age")]
    assert types == [torch.int64, torch.int64, torch.float16, torch.float32]


def test_conditions_change_nothing_else() -> None:
    class Labels(WithConditions):
        def __getitem__(self, index: int) -> Example:
            return super().__getitem__(index)[0], index

    both = [next(Batches(data, 12, 0, 1)(2, 3, slice(0, 12))) for data in (WithConditions(), Labels())]
    assert list(both[1]) == ["x", "labels", "eps", "u"]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[1])


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([{"eps": 1.0}] * 2, "condition 'eps' of an example has a name reserved for training"),
        ([{"guidance": 1.0}] * 2, "condition 'guidance' of an example has a name reserved for training"),
        ([{"a": 1.0}, {"a": 1.0, "b": 2}], "some examples of a batch have the condition 'b', others do not"),
        ([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}], r"condition 'a' has shapes \(2,\) and \(3,\)"),
        ([3, {"labels": 3, "a": 1}], "the condition 'a', others do not"),
    ],
)
def test_conditions_that_no_batch_can_have_are_one_line(conditions: list[Condition], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        collate([(torch.zeros(2), condition) for condition in conditions])
    assert "\n" not in str(caught.value)


def test_numbers_are_drawn_in_their_order() -> None:
    """Further numbers leave all before them as they are."""

    def uniform(row: torch.Generator) -> torch.Tensor:
        return torch.rand((), generator=row, dtype=torch.float64)

    images = load_images("digits")
    one, two = ({"a": uniform}, {"a": uniform, "b": Input(1.0, 8.0).draw})
    first, second = (next(Batches(images, 16, 0, 1, draws=draws)(1, 2, slice(0, 16))) for draws in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (second["b"].dtype, second["b"].shape) == (torch.float64, (16,))
