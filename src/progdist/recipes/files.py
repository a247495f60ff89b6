"""Recipes as YAML: read with explained mistakes, overridden by dotted names, written in full.

An unknown key is refused, with the nearest known one. `progdist recipes` lists the shipped recipes.
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError

from progdist._utils.errors import UserError
from progdist._utils.other_names import OTHER_NAMES, meant
from progdist.recipes.recipe import Recipe
from progdist.recipes.stated import set_key, stated
from progdist.recipes.text import leaves, read_yaml, write_yaml
from progdist.recipes.training import StageTraining
from progdist.training.config import EXACT

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100  # shortens any value in an error


def read_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a file, or a shipped one by name, with `key.key=value` overrides.

    Raises:
        UserError: it cannot be found or read, or has an invalid key or value.
    """
    return validated(stated(name_or_path), overrides, f"recipe {name_or_path}")


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `key.key=value` overrides; a UserError if the result is not a valid recipe."""
    return validated(recipe.model_dump(), overrides, recipe.name)


def call_arguments(settings: Iterable[str]) -> dict[str, Any]:
    """Parse the arguments of `--call name=value`; a UserError if one is invalid."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not (sign and name.isidentifier()):
            raise UserError(f"--call {setting[:50]}: expected name=value, e.g. --call num_frames=25")
        try:
            found[name] = read_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"--call {setting[:50]}: the value is not YAML: quote it") from error
    return found


def validated(content: dict[Any, Any], overrides: Iterable[str], what: str) -> Recipe:
    """The recipe of a map of keys, with overrides; `what` names it in a UserError."""
    overrides = list(overrides)
    for setting in overrides:
        set_key(content, setting)
    try:
        for where, value in leaves(content, lists=True):
            if isinstance(value, int) and abs(value) >= EXACT:
                raise UserError(f"{what}: {where} is {_SHORT.repr(value)}, expected less than 2^53")
        recipe = Recipe.model_validate(content)
        meant = dict(leaves(recipe.model_dump(), lists=True))
    except ValidationError as error:
        raise UserError(f"{what}: {_first_problem(error)}") from error
    except RecursionError as error:
        raise UserError(f"{what} is nested too deeply: write sections and keys, as `progdist recipes` shows") from error
    for setting in overrides:
        _check_effect(recipe, setting)
    for where, value in leaves(content, lists=True):
        if isinstance(value, bool) and not isinstance(meant.get(where, value), bool):
            raise UserError(f"{what}: {where} is {str(value).lower()}, expected a number")
    return recipe


def _check_effect(recipe: Recipe, setting: str) -> None:
    """Refuse an option of all stages if every stage overrides it."""
    section, _, option = setting.partition("=")[0].partition(".")
    if section != "distill" or option not in StageTraining.model_fields:
        return
    stages = [recipe.distill.stages.get(link.steps) for link in recipe.distill.links()]
    if all(stage is not None and getattr(stage, option) is not None for stage in stages):
        steps = recipe.distill.links()[0].steps
        raise UserError(
            f"--set distill.{option} has no effect, because distill.stages sets it for every student: set "
            f"distill.stages.{steps}.{option}, and so on"
        )


def write_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, including defaults."""
    return write_yaml(recipe.model_dump(mode="json"))


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's errors, as a sentence with the remedy.

    If a key takes several types, the error that got furthest belongs to the intended type.
    """
    problem = max(error.errors(), key=lambda problem: len(problem["loc"]))
    where = ".".join(str(part) for part in problem["loc"] if str(part).isidentifier() or isinstance(part, int))
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"key {where} is unknown: {_hint(problem['loc'])}"
    if problem["type"] == "missing":
        return f"key {where} is missing: {problem['msg'].lower()}"
    got = _SHORT.repr(problem["input"])
    if expected := _EXPECTED.get(problem["type"]):
        return f"{where or 'the recipe'} is {got}, expected {expected.format(**problem.get('ctx', {}))}"
    message = problem["msg"].removeprefix("Value error, ")
    complete = isinstance(problem["input"], Mapping | BaseModel) or got in message
    return f"{where}{': ' if where else ''}{message}{'' if complete else f', got {got}'}"


def _hint(location: tuple[int | str, ...]) -> str:
    """Suggest known keys for an unknown one, of its section or another."""
    name, keys = str(location[-1]), _fields(location[:-1])
    here = meant(name, keys)
    synonyms = OTHER_NAMES.get(name.lower(), (name,))
    elsewhere = [key for key in known_keys() if key.rpartition(".")[2] in synonyms]
    if elsewhere and not set(here) & set(synonyms):
        return f"did you mean {' or '.join(elsewhere)}?"
    known = ", ".join(keys)
    return f"did you mean {' or '.join(here)}? (known here: {known})" if here else f"use {known}"


def known_keys() -> list[str]:
    """The dotted names of all keys of a recipe and of its sections."""
    top = _fields(())
    return [*top, *(f"{name}.{key}" for name in top if _fields((name,)) != top for key in _fields((name,)))]


_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list, e.g. [8, 4]"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dataclass_type", "dict_type", "mapping_type"), "keys"),
    "string_type": "text",
    "too_short": "a list of at least {min_length}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
"""Type of a pydantic error -> what was expected, in plain words."""


def _fields(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Recipe
    for name in location:
        if isinstance(name, int):
            section = StageTraining
        elif hint := get_type_hints(section).get(name):
            classes = [each for each in (hint, *get_args(hint)) if isinstance(each, type)]
            section = next((each for each in classes if is_dataclass(each) or issubclass(each, BaseModel)), section)
    return list(section.model_fields) if issubclass(section, BaseModel) else [field.name for field in fields(section)]
