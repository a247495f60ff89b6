"""Numbers and names in messages."""

from collections.abc import Sequence
from math import floor, isfinite, log10

SHOWN = 5  # names listed in a message
PLACES, MOST_PLACES = 3, 4  # digits after the point: where no interval says how many, and at most


def supported(value: float, low: float | None, high: float | None) -> str:
    """A number to the digits that its interval supports: 0.451 as 0.45 of 0.42 to 0.48, and 0.5 of 0.2 to 0.8.

    Those are the digits down to the first one of half the interval's width. An end may be unknown or infinite.
    """
    half = (high - low) / 2 if low is not None and high is not None else float("inf")
    if half == 0:
        return f"{round(value, PLACES):g}"
    places = min(MOST_PLACES, max(0, -floor(log10(half)))) if 0 < half < float("inf") else PLACES
    return f"{round(value, places) + 0.0:.{places}f}"  # + 0.0: no -0.0


def interval(low: float | None, high: float | None, between: str = "–") -> str:
    """The two ends of an interval to the digits that it supports; an end that is None or infinite as ∞."""
    ends = (supported(end, low, high) if end is not None and isfinite(end) else "∞" for end in (low, high))
    return between.join(ends)


def significant(value: float, digits: int = 2) -> str:
    """A number that has no interval in as many digits: 0.0996 as 0.10, 123.4 as 120."""
    rounded = float(f"{value:.{digits}g}")
    places = max(0, digits - 1 - floor(log10(abs(rounded)))) if rounded and isfinite(rounded) else 0
    return f"{rounded:.{places}f}"


def plural(noun: str) -> str:
    """The plural of a noun: steps, classes, batches."""
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def counted(count: int, noun: str) -> str:
    """A count and its noun: 1 step, 2 steps, 0 classes."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def any_of(counts: Sequence[int], noun: str, word: str = "or") -> str:
    """One or more counts as alternatives: 1 step, 8 or 4 steps, 8, 4 or 1 steps."""
    *most, last = counts
    return f"{', '.join(map(str, most))} {word} {last} {plural(noun)}" if most else counted(last, noun)


def listed(names: Sequence[object]) -> str:
    """Names for a message: all of them, or the first few and the total."""
    shown = ", ".join(shortened(str(name)) for name in names[:SHOWN])
    return f"{shown}, ... ({len(names):,} in all)" if len(names) > SHOWN else shown


def shortened(text: str) -> str:
    """A text in one line of at most 40 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}..."


def size_in_words(count: int) -> str:
    """A number of bytes: 512 B, 1.2 kB, 3.4 MB, 5.6 GB."""
    found = next(((unit, size) for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)) if count >= size), None)
    return f"{count / found[1]:.1f} {found[0]}" if found else f"{count} B"
