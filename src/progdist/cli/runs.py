"""The command that lists runs."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from progdist.cli.terminal import print_table, suggest, write_line
from progdist.runs.listing import FAILED, STOPPED, Listed, runs_in

SHOWN = 3  # students of a run, those of the fewest steps
UNITS = {"days": 86400, "h": 3600, "min": 60}  # seconds


def runs(folder: Annotated[Path, typer.Argument(help="A folder of runs, or a run.")] = Path("runs")) -> None:
    """List runs: state, time, and the quality of the students."""
    listed = runs_in(folder)
    if not listed:
        write_line(f"no runs in {folder}")
        suggest("progdist run digits, or progdist init folder:my-images for your own images")
        return
    print_table(runs_table(listed, time.time()))
    write_line("student / teacher: for each number of steps, the student's distance to the data")
    write_line("divided by the teacher's in its own number of steps")
    for run in listed:
        if run.state == FAILED:
            write_line(f"{run.name}: {run.reason}")
    latest = listed[0]
    first = folder if folder.resolve().name == latest.name else folder / latest.name
    if latest.students:
        suggest(f"progdist play {first}")
    elif latest.state in (STOPPED, FAILED):
        suggest(f"run the command of {first} again to resume it")


def runs_table(listed: list[Listed], now: float) -> Table:
    """The runs, in 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold", max_width=20)
    table.add_column("state", overflow="fold", max_width=26)
    table.add_column("changed", no_wrap=True)
    table.add_column("student / teacher", overflow="fold")
    for run in listed:
        state = f"{run.state}, {run.place}" if run.place else run.state
        best = sorted(run.students)[:SHOWN]
        students = ", ".join(f"{steps}: {run.students[steps]:.2f}" for steps in reversed(best))
        table.add_row(run.name, state, ago(now - run.changed), students)
    return table


def ago(seconds: float) -> str:
    """A time span in words, e.g. "2 h ago"."""
    for unit, size in UNITS.items():
        if seconds >= (2 * size if unit == "days" else size):
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"
