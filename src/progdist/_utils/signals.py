"""SIGINT, SIGTERM and SIGHUP: finish the update under way, keep a checkpoint, stop. A second one stops at once.

Signals come to a process, not to an object, so there is one SHUTDOWN for all of it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

RESUME = "Progress is saved; run the same command to resume."


class Interrupted(BaseException):
    """The process was asked to end by the signal of this number; what is worth keeping is kept.

    As KeyboardInterrupt it is no Exception: code that explains or survives what goes wrong lets it pass.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class ShutdownRequest:
    """The signal that waits, and whether an update is under way that is worth finishing."""

    requested: int | None = None
    deferring: bool = False
    process: int = field(default_factory=os.getpid)  # whose signals they are: its workers end with it, not before

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The first signal among updates waits for the end of one; any other stops at once."""
        if os.getpid() != self.process:
            return
        if self.deferring and self.requested is None:
            self.requested = number
        elif _imports(frame):
            _exit(number)
        else:
            raise Interrupted(number)

    def stop(self) -> None:
        """Raise `Interrupted` by the waiting signal, or as for one that another process of the run got."""
        raise Interrupted(self.requested if self.requested is not None else signal.SIGTERM)

    def stop_if_requested(self) -> None:
        """Raise `Interrupted` where a signal waits."""
        if self.requested is not None:
            self.stop()

    @contextmanager
    def deferred_signals(self) -> Iterator[None]:
        """While updates are made, a first signal waits for the end of one."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported: numpy or torch may swallow what is raised there, and go on in pieces."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _exit(number: int) -> NoReturn:
    """End the process at once, in one line."""
    os.write(2, f"progdist: stopped by {signal.Signals(number).name}.\n".encode())
    os._exit(128 + number)


SHUTDOWN = ShutdownRequest()


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP in here, and as before afterwards.

    A SIGHUP that is ignored, as under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    SHUTDOWN.requested, SHUTDOWN.process = None, os.getpid()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, SHUTDOWN.handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def resumable() -> Iterator[None]:
    """Append RESUME to the message of a signal or a disk error raised in here: the same command goes on."""
    try:
        yield
    except (Interrupted, OSError) as error:
        error.add_note(RESUME)
        raise
