"""docs/paper.md tells the truth: its tests are there, and its commands are commands with those options."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from progdist.cli.app import app
from progdist.recipes.files import read_recipe
from progdist.recipes.shipped import shipped
from support.paths import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (ROOT / "docs" / "paper.md").read_text().splitlines()
    if re.match(r"\| [^-p]", line)
]


COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def script(path: str) -> Any:  # noqa: ANN401
    """The command of a script."""
    assert (ROOT / path).is_file()
    return typer.main.get_command(import_module(Path(path).stem).app)


def test_every_section_with_content_has_a_row() -> None:
    sections = " ".join(row[0] for row in ROWS)
    for part in ("2", "3", "4", "5.1", "5.2", "5.3", *"ABCDEFG"):
        assert part in sections.replace(",", " ").split()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace(" ", "-"))
def test_a_row_names_a_test_that_exists(row: list[str]) -> None:
    file, _, function = row[3].strip("`").partition("::")
    text = (ROOT / "tests" / file).read_text()
    assert not function or f"\ndef {function}(" in text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace(" ", "-"))
def test_a_row_names_a_command_that_parses(row: list[str]) -> None:
    program, name, *arguments = shlex.split(row[4].strip("`"))
    assert program in ("progdist", "python")
    known = COMMANDS[name] if program == "progdist" else script(name)
    known.make_context(name, list(arguments))
    if arguments[0] in shipped():
        settings = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
        read_recipe(arguments[0], settings)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace(" ", "-"))
def test_a_row_names_code_that_exists(row: list[str]) -> None:
    house = ROOT / "src" / "progdist"
    for name in re.findall(r"`([\w./]+)`", row[2]):
        if "/" in name:
            assert (house / name).exists() or (ROOT / name).exists()
            continue
        module, _, function = name.rpartition(".")
        if not house.joinpath(*name.split(".")).with_suffix(".py").exists():
            assert f"\ndef {function}(" in house.joinpath(*module.split(".")).with_suffix(".py").read_text()
