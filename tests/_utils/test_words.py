"""Counts in sentences: one of a thing is not several."""

import pytest

from progdist._utils.words import any_of, counted, listed, shortened


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (1, "step", "1 step"), (2, "step", "2 steps"), (0, "image", "0 images"), (1, "class", "1 class"),
        (10, "class", "10 classes"), (3, "batch", "3 batches"), (1, "network evaluation", "1 network evaluation"),
    ],
)  # fmt: skip
def test_counts(count: int, noun: str, said: str) -> None:
    assert counted(count, noun) == said


def test_any_of_some_counts() -> None:
    assert any_of([1], "step") == "1 step"
    assert any_of((8, 1), "step") == "8 or 1 steps"


def test_names_are_listed_and_shortened() -> None:
    assert listed(["a", 2, "c"]) == "a, 2, c"
    assert listed([*range(1200)]) == "0, 1, 2, 3, 4, ... (1,200 in all)"
    assert shortened("two\n  lines") == "two lines"
    assert (shortened("a" * 40), shortened("a" * 41)) == ("a" * 40, "a" * 37 + "...")
