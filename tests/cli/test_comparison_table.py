"""The table of `progdist compare`: every column has the name of what is in it, within 80 columns."""

from io import StringIO
from itertools import pairwise

from rich.console import Console

from progdist.cli.evaluation import comparison_table

FIRST = {
    "label": "a",
    "model": "runs/a-rather-long-name-of-a-run/student-0004",
    "steps": 1024,
    "frechet": 123.456,
    "frechet_low": 120.11,
    "frechet_high": 127.22,
    "against": None,
    "ratio": None,
    "verdict": None,
}
OTHER = {
    "label": "b",
    "against": "a",
    "ratio": {"value": 1.02, "low": 0.97, "high": 1.07},
    "verdict": "undecided",
}


def test_every_column_is_named_within_80_columns() -> None:
    written = StringIO()
    console = Console(file=written, width=80)
    console.print(comparison_table([FIRST, FIRST | OTHER], "digits", 2048))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "Fréchet distance of 2048 samples to the data, digits features" in lines[0]
    heading, under = next((a, b) for a, b in pairwise(lines) if "compared" in a)
    assert heading.split() == ["Fréchet", "95", "%", "compared", "95", "%"]
    assert under.split() == ["model", "steps", "distance", "interval", "with", "ratio", "interval", "verdict"]
    row = next(line for line in lines if "undecided" in line)
    for cell in ("123.456", "120.11–127.22", "1.02", "0.97–1.07"):
        assert cell in row
    assert "interval of the ratio is below" in " ".join(written.getvalue().split())
