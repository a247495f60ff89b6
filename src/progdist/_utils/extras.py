"""Packages that are installed only with an extra, e.g. `pip install 'progdist[lora]'`."""

from importlib import import_module
from typing import Any

from progdist._utils.errors import UserError


def import_extra(module: str, extra: str, what: str) -> Any:  # noqa: ANN401  (a module)
    """Import a module of an optional extra. Raise a UserError that `what` requires it where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the extra `{extra}`: pip install 'progdist[{extra}]'") from error
