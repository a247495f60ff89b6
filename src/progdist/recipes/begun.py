"""Check from files alone, without importing torch, whether a folder holds a run of another recipe.

Compares only what a recipe states; a difference from a default is found later, when the recipe is checked.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from yaml import YAMLError

from progdist._utils.errors import UserError
from progdist._utils.locks import LOCK_FILE
from progdist.recipes.text import leaves, read_yaml

NAMED = 3  # number of keys in an error
MAY_CHANGE = ("teacher", "conversion", "distill", "tracking")  # sections that may change for unfinished models
UNSTATED = {"seed": 0}  # values of keys that a recipe does not state


def check_begun(content: Mapping[Any, Any], folder: Path) -> None:
    """Refuse the folder of a run whose recipe cannot be the one that states this content."""
    path = folder / "recipe.yaml"
    if not (path.is_file() and ((folder / LOCK_FILE).is_file() or (folder / "data.json").is_file())):
        return
    before: dict[str, Any] = {}
    with suppress(OSError, YAMLError, ValueError, RecursionError):  # reported when the whole recipe is read
        before = dict(leaves(read_yaml(path.read_text()), lists=False))
    new = {**UNSTATED, **dict(leaves(content, lists=False))}
    differ = [key for key in new if key in before and not _same(new[key], before[key])]
    if str(new.get("data.source")).startswith("teacher"):  # samples of the teacher, whose shape is not known yet
        differ = [key for key in differ if not key.startswith("data.")]
    first_is_finished = (folder / "teacher").is_dir() or (folder / "converted").is_dir()
    may_change = [section for section in MAY_CHANGE if section != "teacher" or not first_is_finished]
    if any(key.partition(".")[0] not in may_change for key in differ):
        raise other_recipe(folder, differences(before, new, differ))


def other_recipe(folder: Path, differs: str) -> UserError:
    """The error for the folder of another recipe's run, with the keys that differ."""
    return UserError(
        f"{folder} holds a run of another recipe, which differs in {differs}: choose another --out, start over with "
        f"--fresh (the run there is renamed), or set the values of {folder / 'recipe.yaml'} to continue it (training "
        "options of unfinished models may change)"
    )


def differences(before: Mapping[str, Any], new: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first keys with both values, and the number of the others."""
    named = ", ".join(f"{key} (there {before.get(key)!r}, here {new.get(key)!r})" for key in keys[:NAMED])
    return named + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def _same(new: object, before: object) -> bool:
    """Whether a stated value can have been resolved to the one before."""
    as_list = isinstance(new, list) == isinstance(before, list)
    return not as_list or new in (before, "auto") or str(new) == str(before)
