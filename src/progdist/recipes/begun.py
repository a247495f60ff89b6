"""Whether a folder holds a run of another recipe, as the two files say alone; nothing here imports torch.

Only what a recipe states is compared, so that what differs by a default is found later, where the recipe is checked.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from yaml import YAMLError

from progdist._utils.errors import UserError
from progdist._utils.locks import LOCK_FILE
from progdist.recipes.text import leaves, read_yaml

NAMED = 3  # keys that an error names
MAY_CHANGE = ("teacher", "conversion", "distill", "tracking")  # sections of models that may be yet to be finished
UNSAID = {"seed": 0}  # what a recipe states that does not say it


def check_begun(content: Mapping[Any, Any], folder: Path) -> None:
    """Refuse the folder of a run that can only be of another recipe than the one that states this content."""
    path = folder / "recipe.yaml"
    if not (path.is_file() and ((folder / LOCK_FILE).is_file() or (folder / "data.json").is_file())):
        return
    before: dict[str, Any] = {}
    with suppress(OSError, YAMLError, ValueError, RecursionError):  # told where the recipe is read whole
        before = dict(leaves(read_yaml(path.read_text()), lists=False))
    new = {**UNSAID, **dict(leaves(content, lists=False))}
    differ = [key for key in new if key in before and not _same(new[key], before[key])]
    if str(new.get("data.source")).startswith("teacher"):  # samples of the teacher, whose shape is found later
        differ = [key for key in differ if not key.startswith("data.")]
    first_is_finished = (folder / "teacher").is_dir() or (folder / "converted").is_dir()
    may_change = [section for section in MAY_CHANGE if section != "teacher" or not first_is_finished]
    if any(key.partition(".")[0] not in may_change for key in differ):
        raise other_recipe(folder, differences(before, new, differ))


def other_recipe(folder: Path, differs: str) -> UserError:
    """The error about the folder of another recipe's run, which differs in some keys."""
    return UserError(
        f"{folder} holds a run of another recipe, which differs in {differs}: choose another --out, start over with "
        f"--fresh (the run there is renamed), or set what {folder / 'recipe.yaml'} says to continue it (how models yet "
        "to be finished train may change)"
    )


def differences(before: Mapping[str, Any], new: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first keys with both values, and how many more there are."""
    named = ", ".join(f"{key} (there {before.get(key)!r}, here {new.get(key)!r})" for key in keys[:NAMED])
    return named + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def _same(new: object, before: object) -> bool:
    """Whether a value as it is stated may be the one that was resolved from the like of it."""
    as_list = isinstance(new, list) == isinstance(before, list)
    return not as_list or new in (before, "auto") or str(new) == str(before)
