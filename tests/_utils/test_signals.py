"""The first signal asks for an orderly end, the second ends at once."""

import signal

import pytest

from progdist._utils.signals import SHUTDOWN, Interrupted, interruptible


def test_a_second_signal_stops_at_once() -> None:
    with interruptible():
        with pytest.raises(Interrupted), SHUTDOWN.deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            assert SHUTDOWN.requested == signal.SIGTERM
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):  # nothing is under way: the first one does
            SHUTDOWN.requested = None
            signal.raise_signal(signal.SIGINT)
