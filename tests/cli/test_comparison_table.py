"""The table of `progdist compare`: every column has the name of what is in it, within 80 columns."""

from io import StringIO
from itertools import pairwise

import torch
from rich.console import Console

from progdist.cli.evaluation import comparison_table
from progdist.cli.progress import quality_table
from progdist.evaluation.compare import Comparison
from progdist.evaluation.measures.estimate import Estimate
from support.records import evaluation, quality

QUALITY = quality(features="digits", samples=2048, frechet=123.456, frechet_low=120.11, frechet_high=127.22)
RECORD = evaluation("runs/a-rather-long-name-of-a-run/student-0004", 1024, quality=(QUALITY,))
FIRST = Comparison("a", RECORD, QUALITY, torch.zeros(0))
OTHER = Comparison("b", RECORD, QUALITY, torch.zeros(0), "a", Estimate(1.02, 0.97, 1.07), "undecided")


def test_a_runs_table_is_whole_within_80_columns() -> None:
    """Distances of four digits and a teacher of 1,000 steps, whose row and its student's none is cut from."""
    far = quality(frechet=1234.567, frechet_low=1201.111, frechet_high=1270.222)
    records = [evaluation(name, steps, quality=(far,)) for name, steps in (("teacher", 1000), ("student", 500))]
    written = StringIO()
    Console(file=written, width=80).print(quality_table(records))
    assert max(map(len, written.getvalue().splitlines())) <= 80
    assert "…" not in written.getvalue()
    for cell in ("1201–1270", "1235", "ms/image", "teacher,", "DDIM", "1.00"):
        assert cell in written.getvalue()


def test_every_column_is_named_within_80_columns() -> None:
    written = StringIO()
    console = Console(file=written, width=80)
    console.print(comparison_table([FIRST, OTHER]))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "Fréchet distance of 2048 samples to the data, digits features" in lines[0]
    heading, under = next((a, b) for a, b in pairwise(lines) if "compared" in a)
    assert heading.split() == ["Fréchet", "95", "%", "compared", "95", "%"]
    assert under.split() == ["model", "steps", "distance", "interval", "with", "ratio", "interval", "verdict"]
    row = next(line for line in lines if "undecided" in line)
    for cell in ("123", "120–127", "1.02", "0.97–1.07"):
        assert cell in row
    assert "interval of the ratio is below" in " ".join(written.getvalue().split())
