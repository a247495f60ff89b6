"""SIGINT, SIGTERM and SIGHUP: finish the current update, save a checkpoint, stop. A second signal stops at once.

Signals reach a process, not an object, so one SHUTDOWN serves the whole process.
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
    """The process was asked to end by the signal of this number, and its progress is saved.

    Like KeyboardInterrupt, it is not an Exception, so code that handles exceptions lets it pass.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class ShutdownRequest:
    """The pending signal, and whether an update is in progress that should be finished first."""

    requested: int | None = None
    deferring: bool = False
    process: int = field(default_factory=os.getpid)  # the process that handles signals; its workers end with it

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Defer the first signal during an update to its end; stop at once on any other."""
        if os.getpid() != self.process:
            return
        if self.deferring and self.requested is None:
            self.requested = number
        elif _imports(frame):
            _exit(number)
        else:
            raise Interrupted(number)

    def stop(self) -> None:
        """Raise `Interrupted` with the pending signal, or with SIGTERM if another process of the run received one."""
        raise Interrupted(self.requested if self.requested is not None else signal.SIGTERM)

    def stop_if_requested(self) -> None:
        """Raise `Interrupted` if a signal is pending."""
        if self.requested is not None:
            self.stop()

    @contextmanager
    def deferred_signals(self) -> Iterator[None]:
        """Defer a first signal to the end of the current update."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported: numpy or torch may swallow the exception and stay half imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _exit(number: int) -> NoReturn:
    """End the process at once with a one-line message."""
    os.write(2, f"progdist: stopped by {signal.Signals(number).name}.\n".encode())
    os._exit(128 + number)


SHUTDOWN = ShutdownRequest()


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the context, and restore the previous handlers afterwards.

    An ignored SIGHUP, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
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
    """Append RESUME to the message of a signal or disk error raised inside the context."""
    try:
        yield
    except (Interrupted, OSError) as error:
        error.add_note(RESUME)
        raise
