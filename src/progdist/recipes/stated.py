"""The content that a recipe's file and `--set` state, unchecked; does not import torch."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from progdist._utils.errors import UserError
from progdist._utils.words import counted
from progdist.recipes.shipped import recipe_text
from progdist.recipes.text import read_yaml
from progdist.training.config import EXACT

HALVING = {"start": 256, "end": 1, "substeps": 2}  # the default chain


def stated(name_or_path: str, overrides: Iterable[str] = ()) -> dict[Any, Any]:
    """The keys and values of a shipped recipe or a file, with `key.key=value` overrides.

    Raises:
        UserError: it cannot be found, or is not a YAML map; or an override has no value or is not YAML.
    """
    text = recipe_text(name_or_path)
    try:
        content = read_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"recipe {name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"recipe {name_or_path} is not a map of keys to values: see `progdist recipes`")
    for setting in overrides:
        set_key(content, setting)
    return content


def set_key(content: dict[Any, Any], override: str) -> None:
    """Set one dotted key, `key.key=value`; the value is read as YAML."""
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
    try:
        content[_key(last)] = read_yaml(value)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"--set {override[:100]!r} is not YAML: {' '.join(str(error).split())}") from error
    if name == "distill.chain":  # a list replaces start, end and substeps
        for replaced in HALVING:
            content.pop(replaced, None)


def _key(word: str) -> str | int:
    return int(word) if word.isdecimal() and len(word) < len(str(EXACT)) else word


def stated_of_teacher(model: str, steps: int, data: str | None, overrides: Iterable[str]) -> dict[Any, Any]:
    """The content that the recipe of a teacher's distillation will state, as far as the command determines it."""
    content = {"about": about_teacher(model, steps), "teacher": {"model": model}, "data": {"source": data or "teacher"}}
    for setting in overrides:
        set_key(content, setting)
    return content


def run_name(text: str) -> str:
    """Convert a text to the name of a run and its folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "run"


def name_of_data(source: str) -> str:
    """The name of a run on a source: digits; my-images of folder:~/my-images; cifar10 of hub:uoft-cs/cifar10."""
    scheme, _, path = source.partition(":")
    return run_name(re.split(r"[{*?\[]", Path(path).name)[0] if path else scheme)


def about_teacher(model: str, steps: int) -> str:
    """The `about` text of a teacher's distillation."""
    return f"{model} distilled to {counted(steps, 'step')}"


def default_output(source: str, steps: int) -> Path:
    """The default folder of a teacher's distillation."""
    path = Path(source)
    return Path("runs") / f"{path.stem if path.suffix == '.safetensors' else path.name}-{steps}"
