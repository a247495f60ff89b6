"""Shared by all commands: the console, messages on standard error, and errors in one line."""

import errno
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, cast

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from progdist._utils.errors import UserError
from progdist._utils.files import PICKLES, local_path
from progdist._utils.signals import Interrupted, interruptible

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # the variables that torchrun sets in each process


def rank_of(environment: Mapping[str, str]) -> int:
    """The rank of this process under torchrun; 0 for a single process."""
    rank, processes = (environment.get(name, "") for name in LAUNCHED[:2])
    return int(rank) if rank.isdecimal() and processes.isdecimal() else 0


RANK = rank_of(os.environ)  # only rank 0 prints

ERROR_GRACE_SECONDS = 15.0  # for which other processes wait while the first one prints an error that all share

LONGEST_WORD, LARGEST = 1000, 2**53  # characters of a word in a message; whole number of an option
WITHOUT_TERMINAL = 1000  # columns without a terminal, so that no table is cut

for _size in ("COLUMNS", "LINES"):
    if not os.environ.get(_size, "1").isdecimal() or int(os.environ.get(_size, "1")) < 1:
        del os.environ[_size]  # as if it were not set

console = Console(quiet=RANK > 0, markup=False, highlight=False, emoji=False, soft_wrap=True)
P = ParamSpec("P")


def print_table(table: Table) -> None:
    """Print a table, folded to the width of the terminal or COLUMNS if there is either."""
    width = None if console.is_terminal or "COLUMNS" in os.environ else WITHOUT_TERMINAL
    Console(quiet=console.quiet, markup=False, highlight=False, emoji=False, width=width).print(table)


def _expanded(option: Any) -> Any:  # noqa: ANN401
    """Expand `~` in the paths of an option, which a shell leaves in --out=~/images; other values are unchanged."""
    if isinstance(option, list):
        return [_expanded(each) for each in option]
    return local_path(option) if isinstance(option, Path) else option


def user_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print errors of the user and of the disk as one line and exit with code 2; after a signal, with 128 + number.

    If the output is closed (a broken pipe), the command ends silently.
    """

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with interruptible():
                _check_environment()
                _check_numbers(kwargs)
                kwargs.update({name: _expanded(option) for name, option in kwargs.items()})
                command(*args, **kwargs)
        except Interrupted as stop:
            if RANK == 0:
                write_message(stopped_message(stop))
            raise typer.Exit(128 + stop.number) from None
        except UserError as error:
            _refuse(str(error))
        except BrokenPipeError:
            drop_output()
            raise typer.Exit(1) from None
        except OSError as error:
            _refuse(_explain(error))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines() or ["no details"]
            _refuse(f"out of memory ({reason[0]}): use a smaller batch or gradient_accumulation_steps")

    return guarded


def stopped_message(stop: Interrupted) -> str:
    """The line printed after a signal, with the note of the place that raised it on what is kept."""
    return " ".join([f"progdist: stopped by {stop}.", *getattr(stop, "__notes__", [])[:1]])


def drop_output() -> None:
    """Discard further output, because its reader has closed the pipe."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_line(text: str) -> None:
    """Print a line to standard output, whatever its length."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


IN_A_PLACE = ("folder", "captions", "cifar", "npz")  # kinds of data sources that name one folder or file


def begin(
    phase: str, write: Callable[[str], None] = write_line, *, models: Iterable[object] = (), data: str | None = None
) -> None:
    """Check that models and data exist, print what a command starts with, within a second, and then import torch.

    A command whose standard output may be data prints it on standard error with `write_message`.

    Raises:
        UserError: a model (with or without @STEPS) or a source of data is not there.
    """
    for model in map(str, models):
        place = Path(re.sub(r"@\w+$", "", model))
        if not (model.startswith("hub:") or Path(model).exists() or place.exists() or place.suffix in PICKLES):
            hint = f" (hub:{model} for a model on the Hugging Face hub)" if model.count("/") == 1 else ""
            raise UserError(f"{model} is not a folder: it does not exist{hint}")
    kind, _, place = (data or "").partition(":")
    if kind in IN_A_PLACE and not local_path(place).exists():
        raise UserError(f"{data}: {place} does not exist")
    if RANK == 0:
        write(phase)
    prepare_torch()


def suggest(command: str) -> None:
    """Suggest the next command, in one line."""
    write_line(f"Next: {command}")


def prepare_torch() -> None:
    """Import torch, which takes seconds, with the settings that all commands share."""
    import torch

    torch.set_flush_denormal(True)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # our own errors name an image that cannot be read
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about kernels that are not used here


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has its own error only for a GPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate" in str(error)


def _check_environment() -> None:
    """Refuse invalid torchrun variables; an empty one counts as not set."""
    for name in LAUNCHED:
        value = os.environ.get(name, "").strip()
        if value in ("", "-1"):
            os.environ.pop(name, None)
        elif not value.isdecimal():
            raise UserError(f"the variable {name} is {value!r}, expected a whole number: unset it, or use torchrun")
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError("the variable LOCAL_RANK requires WORLD_SIZE: unset it, or use torchrun")


def _check_numbers(options: Mapping[str, object]) -> None:
    """Refuse numbers that are not finite, and whole numbers above LARGEST."""
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option} is {value}, expected a finite number")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{option} is {value}, expected at most {LARGEST}")


UsageError = cast(Any, typer.BadParameter.__base__)  # what typer raises for wrong options and arguments


VALUES = {"str": "TEXT", "int": "INTEGER", "float": "FLOAT", "path": "PATH"}  # types of options, as help shows them


class Commands(TyperGroup):
    """Commands with one-line usage errors, like all errors, and MODEL, TEXT, INTEGER, FLOAT in their help."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """A command, with its arguments and the types of its options in capitals."""
        command = super().get_command(ctx, cmd_name)
        for parameter in cast(Any, command).params if command else ():
            if parameter.param_type_name == "argument":
                parameter.metavar = parameter.name.upper()
            elif not parameter.is_flag:
                kind = parameter.display_type(ctx).strip("<>").removesuffix(" range")
                several = kind.startswith("list[")
                name = VALUES.get(kind.removeprefix("list[").rstrip("]"))
                parameter.metavar = f"{name} ..." if name and several else name
        return command

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401
        """Parse the options before the command."""
        try:
            return super().make_context(*args, **extra)
        except UsageError as error:
            refuse_usage(error)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the command with its own options."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            refuse_usage(error)


def refuse_usage(error: Any) -> NoReturn:  # noqa: ANN401
    """Print a usage error as one line and exit with code 2."""
    if type(error).__name__ == "NoArgsIsHelpError":  # it shows the help
        raise error
    path = error.ctx.command_path if error.ctx else "progdist"
    _refuse(f"{error.format_message().rstrip('.')}: see {path} --help")


def write_message(text: str) -> None:
    """Print to standard error."""
    with suppress(BrokenPipeError):
        typer.echo(text, err=True)


def _refuse(line: str) -> NoReturn:
    if RANK > 0:
        time.sleep(ERROR_GRACE_SECONDS)  # the launcher ends this process once another one has printed and exited
        line = f"process {RANK}: {line}"
    write_message(f"progdist: {' '.join(map(_shown, line.split()))}")
    raise typer.Exit(2)


def _shown(word: str) -> str:
    """A word, or its start and length if it is too long to read."""
    return word if len(word) <= LONGEST_WORD else f"{word[:40]}... ({len(word):,} characters)"


def _explain(error: OSError) -> str:
    path = error.filename or "the output folder"
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EFBIG: "allow larger files (ulimit -f)",
        errno.EDQUOT: "free some space or raise the quota",
        errno.EACCES: "choose a path you may read and write",
        errno.EROFS: "choose a path that is not read-only",
    }.get(error.errno or 0, "check the path")
    notes = "".join(f". {note}" for note in getattr(error, "__notes__", [])[:1])
    return f"{path}: {error.strerror or error}: {remedy}{notes}"
