"""docs/paper.md tells the truth: its tests are there, and its commands are commands with those options."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from progdist.cli.app import app
from progdist.recipes.files import read_recipe, shipped

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (ROOT / "docs" / "paper.md").read_text().splitlines()
    if re.match(r"\| [^-p]", line)
]
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


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
    program, name, *words = shlex.split(row[4].strip("`"))
    assert program == "progdist"
    COMMANDS[name].make_context(name, list(words))
    if words[0] in shipped():
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        read_recipe(words[0], settings)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace(" ", "-"))
def test_a_row_names_code_that_exists(row: list[str]) -> None:
    for name in re.findall(r"`([\w./]+)`", row[2]):
        parts = name.split(".")
        house = ROOT / "src" / "progdist"
        places = [house / name, house / f"{parts[0]}.py", house.joinpath(*parts).with_suffix(".py")]
        found = [place for place in places if place.exists()]
        assert found
        if len(parts) > 1 and parts[0] not in ("studies",) and not name.endswith("yaml"):
            assert f"def {parts[1]}(" in found[0].read_text()
