"""SIGINT and SIGTERM: finish the update under way, keep a checkpoint, stop. A second one stops at once.

Signals come to a process, not to an object, so there is one SHUTDOWN for all of it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(Exception):
    """The process was asked to end by the signal of this number; what is worth keeping is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class ShutdownRequest:
    """The signal that waits, and whether an update is under way that is worth finishing."""

    requested: int | None = None
    deferring: bool = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The first signal among updates waits for the end of one; any other stops at once."""
        if self.deferring and self.requested is None:
            self.requested = number
        else:
            raise Interrupted(number)

    def stop(self) -> None:
        """Raise `Interrupted` by the waiting signal, or as for one that another process of the run got."""
        raise Interrupted(self.requested if self.requested is not None else signal.SIGTERM)

    @contextmanager
    def deferred_signals(self) -> Iterator[None]:
        """While updates are made, a first signal waits for the end of one."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False


SHUTDOWN = ShutdownRequest()


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGINT and SIGTERM in here, and as before afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    SHUTDOWN.requested = None
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, SHUTDOWN.handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
