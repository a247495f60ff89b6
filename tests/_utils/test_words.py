"""Counts in sentences: one of a thing is not several."""

import pytest

from progdist._utils.words import any_of, counted, interval, listed, shortened, significant, supported


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
    assert any_of((8, 4, 1), "step", "and") == "8, 4 and 1 steps"


def test_names_are_listed_and_shortened() -> None:
    assert listed(["a", 2, "c"]) == "a, 2, c"
    assert listed([*range(1200)]) == "0, 1, 2, 3, 4, ... (1,200 in all)"
    assert shortened("two\n  lines") == "two lines"
    assert (shortened("a" * 40), shortened("a" * 41)) == ("a" * 40, "a" * 37 + "...")


@pytest.mark.parametrize(
    ("value", "low", "high", "said", "ends"),
    [
        (0.451, 0.42, 0.48, "0.45", "0.42–0.48"), (0.451, 0.2, 0.8, "0.5", "0.2–0.8"),
        (27.05, 26.1, 28.0, "27.1", "26.1–28.0"),
        (1234.567, 1201.111, 1270.222, "1235", "1201–1270"), (0.123456, 0.12345, 0.12346, "0.1235", "0.1235–0.1235"),
        (3.0, 3.0, 3.0, "3", "3–3"), (0.0, 0.0, 0.0, "0", "0–0"),
        (-0.001, -0.05, 0.05, "0.00", "-0.05–0.05"), (1.5, 1.2, None, "1.500", "1.200–∞"),
        (1.5, 1.2, float("inf"), "1.500", "1.200–∞"),
    ],
)  # fmt: skip
def test_a_number_has_the_digits_that_its_interval_supports(
    value: float, low: float, high: float | None, said: str, ends: str
) -> None:
    assert supported(value, low, high) == said
    assert interval(low, high) == ends


def test_a_number_without_an_interval_has_two_digits() -> None:
    assert [significant(value) for value in (0.0996, 123.4, 44.0, 0.0, 0.803)] == ["0.10", "120", "44", "0", "0.80"]
