"""Recipes as YAML: read with their mistakes explained, overridden by dotted names, written whole.

An unknown key is refused, with the nearest one named. `progdist recipes` lists those that ship.
"""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError

from progdist._utils.errors import UserError
from progdist.recipes.recipe import Recipe
from progdist.recipes.training import HALVING, StageTraining

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100  # shows what was got in few words, whatever it is


def shipped() -> dict[str, str]:
    """The recipes that come with progdist: name -> YAML text."""
    folder = files("progdist") / "recipes" / "presets"
    texts = {entry.name.removesuffix(".yaml"): entry.read_text() for entry in folder.iterdir()}
    return dict(sorted(texts.items()))


def read_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a file, or the name of one that ships, with `key.key=value` overrides.

    Raises:
        UserError: it cannot be found or read, or has a key or value that no recipe has.
    """
    path = Path(name_or_path)
    presets = shipped()
    if name_or_path in presets:
        text = presets[name_or_path]
    elif path.is_file():
        text = _text(path)
    else:
        near = difflib.get_close_matches(name_or_path, presets, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"recipe {name_or_path!r} is neither a file nor one that ships: {hint}use {', '.join(presets)} or a path"
        )
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"recipe {name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"recipe {name_or_path} is not a map of keys to values: see `progdist recipes`")
    return validated(content, overrides, f"recipe {name_or_path}")


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `key.key=value` overrides; a UserError if it then says something that no recipe can say."""
    return validated(recipe.model_dump(), overrides, recipe.name)


def validated(content: dict[Any, Any], overrides: Iterable[str], what: str) -> Recipe:
    """The recipe that a map of keys describes, with overrides; `what` names it in the UserError about what is wrong."""
    try:
        for setting in overrides:
            _override(content, setting)
        return Recipe.model_validate(content)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{what}: --set is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(f"{what}: {_first_problem(error)}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not text: give a YAML file") from error


def write_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults and all."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _override(content: dict[Any, Any], override: str) -> None:
    """Set one dotted key; the value is read as YAML."""
    name, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override!r} has no value: write key=value, e.g. evaluate.samples=500")
    *parents, last = name.split(".")
    for parent in parents:
        if content.get(_key(parent)) is None:
            content[_key(parent)] = {}
        content = content[_key(parent)]
        if not isinstance(content, dict):
            raise UserError(f"--set {override!r}: {parent} is a value, not a section")
    content[_key(last)] = yaml.safe_load(value)
    if name == "distill.chain":  # as a list it takes the place of what it would be made from
        for replaced in HALVING:
            content.pop(replaced, None)


def _key(word: str) -> str | int:
    return int(word) if word.isdigit() else word


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints, as a sentence that says what to do.

    Of the complaints of each type that a key takes, the one that got furthest is of the type that was meant.
    """
    problem = max(error.errors(), key=lambda problem: len(problem["loc"]))
    where = ".".join(str(part) for part in problem["loc"] if str(part).isidentifier() or isinstance(part, int))
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys = _fields(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), keys, 1, 0.0)
        return f"key {where} is unknown: did you mean {near[0]}? (known here: {', '.join(keys)})"
    if problem["type"] == "missing":
        return f"key {where} is missing: {problem['msg'].lower()}"
    got = "" if isinstance(problem["input"], Mapping | BaseModel) else f", got {_SHORT.repr(problem['input'])}"
    return f"{where}{': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{got}"


def _fields(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Recipe
    for name in location:
        if isinstance(name, int):
            section = StageTraining
        elif hint := get_type_hints(section).get(name):
            classes = [each for each in (hint, *get_args(hint)) if isinstance(each, type)]
            section = next((each for each in classes if is_dataclass(each) or issubclass(each, BaseModel)), section)
    return list(section.model_fields) if issubclass(section, BaseModel) else [field.name for field in fields(section)]
