"""A lock that allows one process per folder and ends with the process, however it ends."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from progdist._utils.errors import UserError

LOCK_FILE = ".owner"  # names the process that uses the folder
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # another process holds the lock; other errors: no locks here


def is_locked(folder: Path) -> bool:
    """Whether a process holds a folder; nothing is written."""
    try:
        with (folder / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # also where there is no such file
        return error.errno in HELD and (folder / LOCK_FILE).is_file()
    return False


@contextmanager
def locked(folder: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Lock a folder, creating it if missing. Raise a UserError where another process holds it.

    `note` is called where the file system has no locks, so a second process would go unnoticed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                note(f"warning: {folder} cannot be locked ({error.strerror}): make sure that no second process uses it")
                yield
                return
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(f"{folder} is in use by {owner}: wait for it, stop it, or choose another --out") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
