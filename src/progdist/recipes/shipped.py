"""The shipped recipes, and the text of a recipe.

Does not import torch, so that lists and mistyped names are instant. `progdist.recipes.files` checks the content.
"""

import difflib
from importlib.resources import files
from pathlib import Path

from progdist._utils.errors import UserError
from progdist._utils.files import local_path


def shipped() -> dict[str, str]:
    """The recipes that come with progdist: name -> YAML text."""
    folder = files("progdist") / "recipes" / "presets"
    texts = {entry.name.removesuffix(".yaml"): entry.read_text() for entry in folder.iterdir()}
    return dict(sorted(texts.items()))


def recipe_text(name_or_path: str) -> str:
    """The YAML of a shipped recipe, by its name, or of a file.

    Raises:
        UserError: it does not exist, or the file is not text.
    """
    path, presets = local_path(name_or_path), shipped()
    if name_or_path in presets:
        return presets[name_or_path]
    if path.is_file():
        return _text(path)
    near = difflib.get_close_matches(name_or_path, presets, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"recipe {name_or_path!r} is neither a file nor a shipped recipe: {hint}use {', '.join(presets)} or a path"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not text, expected a YAML file") from error
