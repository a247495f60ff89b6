"""Help and mistakes as a terminal of 80 columns shows them."""

import re

import pytest
import typer
from typer.testing import CliRunner

from progdist.cli.app import app

COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
WIDTH = 80


def output(*arguments: str) -> str:
    """What `progdist` prints in a terminal of that width, mistakes included."""
    return CliRunner(env={"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH)}).invoke(app, list(arguments)).output


def check_fits(text: str) -> None:
    """No line is wider than the terminal, and none is cut."""
    assert max(map(len, text.splitlines())) <= WIDTH
    assert not re.search(r"…|\w\.\.\.$", text, re.MULTILINE)


def test_the_list_of_commands_is_whole() -> None:
    text = output("--help")
    check_fits(text)
    for name, command in COMMANDS.items():
        first = " ".join(command.help.split()).split(". ")[0].rstrip(".")
        assert f"{name} " in text
        assert first in text, f"the first sentence of `{name}` has {len(first)} characters: make it shorter"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_every_word_of_its_help_is_shown(name: str) -> None:
    text = output(name, "--help")
    check_fits(text)
    words = set(re.sub(r"-\n +", "-", text).split())  # a line may end within a word that has a hyphen
    for parameter in COMMANDS[name].params:
        shown = set((parameter.help or "").split()) | set(parameter.opts if "-" in parameter.opts[0] else ())
        assert {word for word in shown if not words & {word, f"{word},"}} == set()


def test_the_list_of_recipes_fits() -> None:
    text = output("recipes")
    check_fits(text)
    assert all(re.match(r"[\w-]+  +\S| {8,}\S", line) for line in text.splitlines()[:-1])
