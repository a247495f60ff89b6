"""Every page of docs/: its commands parse, its snippets are Python, and links to it lead somewhere."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
from markdown.extensions.toc import slugify

from progdist.cli.app import app
from support.paths import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
"""Files beside the site that link to its pages; mkdocs checks the links between pages."""
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
MADE = ("STAGES", "$SETTINGS", "...")
"""Words that stand for further options."""


def commands(page: str) -> list[list[str]]:
    """The commands of a page, in indented lines: `progdist ...` and `python FILE ...`, also within a loop."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [line for line in re.findall(r"^ {4,8}(\S.*)$", text, re.M) if not line.startswith("|")]
    found = []
    for line in lines:
        for part in re.split(r"; do |; done|;(?= )| > ", line):
            words = re.match(r"(?:\w+=\S* )*((?:progdist|python) .*)", part.strip())
            if words:
                found.append([word for word in shlex.split(words[1], comments=True) if word not in MADE])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_parse(page: str) -> None:
    for program, name, *arguments in commands(page):
        if program == "python":
            assert (ROOT / name).is_file(), name
        elif not name.startswith("-"):
            COMMANDS[name].make_context(name, list(arguments))


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES)
def test_its_snippets_are_python(page: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
        ast.parse(block)


@pytest.mark.parametrize("file", OUTSIDE)
def test_links_into_the_site_lead_somewhere(file: str) -> None:
    place = (ROOT / file).parent
    for target, anchor in re.findall(r"\]\(([^)#:\s]*docs/[^)#\s]+\.md)(?:#([^)\s]+))?\)", (ROOT / file).read_text()):
        path = place / target
        assert path.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in {slugify(heading.replace("`", ""), "-") for heading in headings}, f"{target}#{anchor}"


@pytest.mark.parametrize("folder", ["src", "benchmarks", "examples"])
def test_pages_that_the_code_names_exist(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix in (".py", ".yaml", ".ipynb"):
            for name in re.findall(r"docs/[\w/-]+\.(?:md|png)", path.read_text()):
                assert (ROOT / name).is_file(), f"{Path(path).name}: {name}"
