"""Prepare the teacher of a run once, in `base/` of the run's folder (see `progdist.teachers.prepared`).

One of the run's processes makes it. It stays with the run, which therefore resumes with the same teacher.
"""

import atexit
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from progdist._utils.errors import UserError
from progdist.recipes.files import read_recipe
from progdist.runs.folder import BASE, RunFolder
from progdist.teachers.prepared import Source, differs, prepare


def prepared_teacher(
    source: Source,
    out: Path,
    *,
    fresh: bool = False,
    dry: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> str:
    """Return what to open as a run's teacher: the named model, or the folder prepared from it.

    Args:
        source: the teacher.
        out: the run's folder.
        fresh: start over: prepare a folder made from other files again.
        dry: write nothing to `out`; use a temporary folder that is deleted when the process ends.
        note: called with a line on what was prepared.

    Raises:
        UserError: as in `prepare`; `out` is not a run; or its run was started with a teacher from other files.
    """
    source.check()
    if not source.needs_preparing:
        return source.model
    folder = RunFolder(out)
    folder.check_movable()
    started = folder.holds_run() and not fresh
    if started:
        _check_begun(source, folder)
    base = folder.base()
    if dry and (not base.is_dir() or differs(source, base)):
        place = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        return str(prepare(source, Path(place) / BASE))
    if dry:
        return str(base)
    with _one_at_a_time(out):
        if base.is_dir() and (changed := differs(source, base)):
            if started:
                raise UserError(
                    f"{base}, the teacher of this run, was made from other files ({changed} differs): restore them, or "
                    "start over with --fresh or another --out"
                )
            shutil.rmtree(base)
        if not base.is_dir():
            note(f"the teacher is prepared once: {prepare(source, base)}")
    return str(base)


def _check_begun(source: Source, folder: RunFolder) -> None:
    """Refuse the folder of a run that was started with another teacher; nothing is written to it."""
    how = read_recipe(str(folder.recipe())).teacher
    before, now = Source(str(how.model), how.loras, how.config), replace(source, loras=tuple(source.loras))
    if before != now:
        raise UserError(
            f"{folder.root} holds a run of another teacher ({before.in_words()}; here {now.in_words()}): choose "
            "another --out, or start over with --fresh"
        )


@contextmanager
def _one_at_a_time(out: Path) -> Iterator[None]:
    """Let in one process at a time, and remove what a killed one left; without locks, let in every process."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / f".{BASE}.lock").open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            for partial in out.glob(f".{BASE}.*.partial"):
                shutil.rmtree(partial)
        yield
