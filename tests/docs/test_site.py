"""The site has every page, and its page of recipe keys every key."""

import runpy
import sys
from types import ModuleType

import pytest
import yaml

from progdist.recipes.recipe import Recipe
from support.paths import ROOT


def test_every_page_is_in_the_navigation() -> None:
    pages = [page for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in entry.values()]
    assert sorted(pages) == sorted([*(path.name for path in (ROOT / "docs").glob("*.md")), "recipes.md"])


def test_the_reference_has_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made without the generator of the site, which is an extra of its own."""
    stand_in = ModuleType("mkdocs.structure.files")
    vars(stand_in).update(File=object, Files=object)
    for name, module in {"mkdocs": ModuleType("mkdocs"), "mkdocs.structure": ModuleType("mkdocs.structure")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "mkdocs.structure.files", stand_in)
    page = runpy.run_path(str(ROOT / "docs" / "_recipe_reference.py"))
    sections = dict(page["sections"](Recipe))
    assert {"", "data", "teacher", "conversion", "distill", "distill.stages.N", "distill.stop"} <= sections.keys()
    for name, part in sections.items():
        text = page["table"](name, part)
        assert all(f"| `{key}` |" in text for key in part.model_fields)
