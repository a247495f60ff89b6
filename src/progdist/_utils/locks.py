"""One process at work in a folder: a lock that ends with the process, however it ends."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from progdist._utils.errors import UserError

LOCK_FILE = ".owner"  # names the process at work in the folder
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # where another process holds a lock; else there are no locks


@contextmanager
def locked(folder: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a folder, made if missing, against a second process; a UserError where one has it.

    `note` is called where the file system has no locks, and a second process would not be noticed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                note(f"warning: {folder} cannot be locked ({error.strerror}): see that no second process uses it")
                yield
                return
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(f"{folder} is in use by {owner}: wait for it, stop it, or choose another --out") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether a process, this one or another, holds a folder; so it is said where the file system has no locks."""
    try:
        with (folder / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
