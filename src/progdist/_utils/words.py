"""Numbers and names in messages."""

from collections.abc import Sequence

SHOWN = 5  # names listed in a message


def plural(noun: str) -> str:
    """The plural of a noun: steps, classes, batches."""
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def counted(count: int, noun: str) -> str:
    """A count and its noun: 1 step, 2 steps, 0 classes."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def any_of(counts: Sequence[int], noun: str) -> str:
    """One or more counts as alternatives: 1 step, 8 or 4 steps."""
    return counted(counts[0], noun) if len(counts) == 1 else f"{' or '.join(map(str, counts))} {plural(noun)}"


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
