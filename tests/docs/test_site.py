"""The site builds without a warning, is whole, and asks nothing of other servers."""

import importlib.util
import logging
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

import progdist
from progdist.recipes.recipe import Recipe
from progdist.training.config import DEFAULTS
from support.paths import ROOT

GENERATED = {"recipes.md", "commands.md"}


def hook(name: str) -> ModuleType:
    """A module that adds to the site, e.g. docs/_recipe_reference.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(navigation: list[dict[str, Any]]) -> Iterator[str]:
    """The files that a navigation names."""
    for entry in navigation:
        for value in entry.values():
            yield from pages(value) if isinstance(value, list) else (value,)


def test_every_page_is_in_the_navigation() -> None:
    named = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == written | GENERATED | notebooks


def test_the_reference_has_every_key() -> None:
    page = hook("_recipe_reference")
    sections = dict(page.sections(Recipe))
    assert {"", "data", "teacher", "conversion", "distill", "distill.stages.N", "distill.stop"} <= sections.keys()
    for name, part in sections.items():
        text = page.table(name, part)
        for key in page.fields(part):
            row = next(line for line in text.splitlines() if line.startswith(f"| `{key}` |"))
            assert all(cell.strip() for cell in row.strip("|").split("|")), f"{name}.{key} lacks a type or a meaning"
        for key, value in DEFAULTS.get(name, {}).items():
            assert f"| `{value!r}` |" in next(line for line in text.splitlines() if line.startswith(f"| `{key}` |"))


def test_the_python_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    assert {f"progdist.{name}" for name in progdist.__all__} <= documented
    for name in documented:
        assert pkgutil.resolve_name(name) is not None


def test_the_page_of_commands_has_every_option_and_default() -> None:
    reference = hook("_command_reference")
    sheet = reference.cheat_sheet()
    assert len(sheet.splitlines()) <= 40  # one screen
    for name, command in reference.commands().items():
        assert f"](#{name}) |" in sheet
        text = reference.section(name)
        for option in filter(reference.is_option, command.params):
            row = next(line for line in text.splitlines() if line.startswith(f"| `{option.opts[0]}`"))
            assert option.required or option.default in (None, False) or f"`{option.default}`" in row


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the generator and its plugins
def test_it_builds_without_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    assert not caplog.records
    text = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    for name, page in text.items():
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]* src="([^"]+)|<link[^>]* href="([^"]+)', page)
        assert not [each for pair in fetched for each in pair if each.startswith(("http", "//"))], name
        assert "arithmatex" not in page, name  # an equation that was not typeset
    assert text["theory/index.html"].count("<math") > 60
    assert (tmp_path / "assets" / "stix-two-math.woff").stat().st_size < 300_000


def test_an_equation_that_does_not_parse_ends_the_build() -> None:
    typeset = hook("_typeset").on_page_content
    assert "<mi>z</mi>" in typeset(r'<span class="arithmatex">\(z &lt; 1\)</span>')
    with pytest.raises(Exception, match="nosuch"):
        typeset(r'<div class="arithmatex">\[\nosuch{x}\]</div>')


def test_the_theory_names_tests_that_exist() -> None:
    file = None
    for name in re.findall(r"`((?:[\w/]+\.py::)?test_\w+)`", (ROOT / "docs" / "theory.md").read_text()):
        path, _, function = name.rpartition("::")
        file = ROOT / "tests" / path if path else file
        assert file
        assert f"\ndef {function}(" in file.read_text(), name
