"""Packages that only an extra of the installation brings, e.g. `pip install 'progdist[lora]'`."""

from importlib import import_module
from typing import Any

from progdist._utils.errors import UserError


def import_extra(module: str, extra: str, what: str) -> Any:  # noqa: ANN401  (a module)
    """A module that an extra brings; a UserError, which begins with `what` needs it, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the extra `{extra}`: pip install 'progdist[{extra}]'") from error
