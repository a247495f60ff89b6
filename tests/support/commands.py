"""The command line called in this process, and the recipe that most tests run."""

import json
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from typer.testing import CliRunner, Result

from progdist.cli.app import app

TINY = """
name: tiny
data: {source: digits}
network: {width: 8, multipliers: [1, 2], groups: 4}
teacher: {updates: 12, batch: 8, learning_rate: 1.0e-3, warmup: 2, ema: 0.9, checkpoint_every: 4, precision: float32}
distill: {start: 8, end: 1, updates: 3, batch: 8, learning_rate: 1.0e-3, checkpoint_every: 2, precision: float32}
evaluate: {samples: 96, features: [digits, pixels], resamples: 4, precision: float32}
"""
SHORT_EVALUATION = (
    "--set",
    "evaluate.samples=16",
    "--set",
    "evaluate.resamples=2",
    "--set",
    "evaluate.features=[pixels]",
)
UNTRAINED = ("--set", "teacher.trust=true")
"""For teachers whose weights are noise, of which the check of their output can tell nothing."""


def call(*arguments: object) -> Result:
    """`progdist` with these arguments."""
    return call_in(app, *arguments)


def succeeds(*arguments: object) -> Result:
    """`progdist` with these arguments, which ends without a mistake."""
    return succeeds_in(app, *arguments)


def call_in(program: typer.Typer, *arguments: object) -> Result:
    """A program with these arguments, e.g. the `app` of a script."""
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def succeeds_in(program: typer.Typer, *arguments: object) -> Result:
    """A program with these arguments, which ends without a mistake."""
    result = call_in(program, *arguments)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result


def refused(result: Result, *fragments: str) -> None:
    """Exit code 2, and one line at the end of standard error that holds the fragments; no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    *phases, line = result.stderr.splitlines()
    assert line.startswith("progdist: ")
    assert not [each for each in phases if each.startswith(("progdist: ", "Traceback"))]
    for fragment in fragments:
        assert fragment in f"{line}\n", result.stderr


def read_records(run: Path, file: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, evaluations.jsonl or results.jsonl."""
    return [json.loads(line) for line in (run / f"{file}.jsonl").read_text().splitlines()]


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file."""
    with Image.open(path) as image:
        return image.size


class SilentCallback:
    """A callback that shows nothing and keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, title: str, updates: int) -> None: ...
    def progress(self, progress: object) -> None: ...
    def end(self, stopped: int | None = None) -> None: ...
    def evaluated(self, record: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)
