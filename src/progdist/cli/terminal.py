"""What every command shares: the console, messages on standard error, and errors shown as one line."""

import errno
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from progdist._utils.errors import UserError
from progdist._utils.signals import Interrupted, interruptible

RANK = int(os.environ.get("RANK", "0"))
"""Which of the processes of a run this is, as torchrun tells; only the first one speaks."""

ERROR_GRACE_SECONDS = 15.0
"""Seconds for which another process lets the first one speak of a mistake that all have met."""

console = Console(quiet=RANK > 0)
P = ParamSpec("P")


def user_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn mistakes of the user and of the disk into one line and exit code 2, signals into theirs and 128 + number."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        import torch  # here, so that --help need not wait for it

        torch.set_flush_denormal(True)
        try:
            with interruptible():
                command(*args, **kwargs)
        except Interrupted as stop:
            if RANK == 0:
                write_message(
                    f"progdist: stopped by {stop}; what was written is kept; the same command again goes on from there"
                )
            raise typer.Exit(128 + stop.number) from None
        except UserError as error:
            _refuse(str(error))
        except torch.OutOfMemoryError as error:
            _refuse(f"out of memory ({str(error).splitlines()[0]}): use a smaller batch, or accumulate gradients")
        except OSError as error:
            _refuse(_explain(error))

    return guarded


UsageError = cast(Any, typer.BadParameter.__base__)
"""What typer raises of options and arguments that it cannot take."""


class Commands(TyperGroup):
    """Commands whose wrong options and arguments are told in one line, as other mistakes are."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401
        """The options before the command."""
        try:
            return super().make_context(*args, **extra)
        except UsageError as error:
            _refuse_usage(error)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """The command with its own options."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            _refuse_usage(error)


def _refuse_usage(error: Any) -> None:  # noqa: ANN401
    if type(error).__name__ == "NoArgsIsHelpError":  # which shows the help
        raise error
    path = error.ctx.command_path if error.ctx else "progdist"
    _refuse(f"{error.format_message().rstrip('.')}: see {path} --help")


def write_message(text: str) -> None:
    """A remark, apart from the results."""
    sys.stderr.write(f"{text}\n")


def _refuse(line: str) -> None:
    if RANK > 0:
        time.sleep(ERROR_GRACE_SECONDS)  # the launcher ends this process as soon as another one has spoken and ended
        line = f"process {RANK}: {line}"
    write_message(f"progdist: {' '.join(line.split())}")
    raise typer.Exit(2)


def _explain(error: OSError) -> str:
    path = error.filename or "the output folder"
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EFBIG: "allow larger files (ulimit -f)",
        errno.EDQUOT: "free some space, or ask for a larger quota",
        errno.EACCES: "choose a place you may write to and read from",
        errno.EROFS: "choose a place that is not read-only",
    }.get(error.errno or 0, "check the path")
    return f"{path}: {error.strerror or error}: {remedy} and run again; what was written is kept"
