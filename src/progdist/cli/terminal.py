"""What all commands share: the console, messages on standard error, and errors as one line."""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from progdist._utils.errors import UserError
from progdist._utils.signals import Interrupted, interruptible

RANK = int(os.environ.get("RANK", "0"))  # rank of this process under torchrun; only rank 0 prints

ERROR_GRACE_SECONDS = 15.0  # for which another process waits for the first one to print an error that all have met

console = Console(quiet=RANK > 0)
P = ParamSpec("P")


def user_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print errors of the user and of the disk as one line and exit with code 2; after a signal, with 128 + number."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        import torch  # here, so that --help need not wait for it

        torch.set_flush_denormal(True)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here uses
        try:
            with interruptible():
                command(*args, **kwargs)
        except Interrupted as stop:
            if RANK == 0:
                write_message(f"progdist: stopped by {stop}. Progress is saved; run the same command to resume.")
            raise typer.Exit(128 + stop.number) from None
        except UserError as error:
            _refuse(str(error))
        except torch.OutOfMemoryError as error:
            _refuse(f"out of memory ({str(error).splitlines()[0]}): use a smaller batch or gradient_accumulation_steps")
        except OSError as error:
            _refuse(_explain(error))

    return guarded


UsageError = cast(Any, typer.BadParameter.__base__)  # what typer raises for wrong options and arguments


class Commands(TyperGroup):
    """Commands whose usage errors are printed as one line, as other errors are."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401
        """The options before the command."""
        try:
            return super().make_context(*args, **extra)
        except UsageError as error:
            refuse_usage(error)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """The command with its own options."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            refuse_usage(error)


def refuse_usage(error: Any) -> NoReturn:  # noqa: ANN401
    """Print a usage error as one line and exit with code 2."""
    if type(error).__name__ == "NoArgsIsHelpError":  # which shows the help
        raise error
    path = error.ctx.command_path if error.ctx else "progdist"
    _refuse(f"{error.format_message().rstrip('.')}: see {path} --help")


def write_message(text: str) -> None:
    """Print to standard error."""
    sys.stderr.write(f"{text}\n")


def _refuse(line: str) -> NoReturn:
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
        errno.EDQUOT: "free some space or raise the quota",
        errno.EACCES: "choose a path you may read and write",
        errno.EROFS: "choose a path that is not read-only",
    }.get(error.errno or 0, "check the path")
    return f"{path}: {error.strerror or error}: {remedy} and run the same command; progress is saved"
