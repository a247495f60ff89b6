"""The first signal asks for an orderly end, the second ends at once, and no code of others holds either back."""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest

from progdist.__main__ import main
from progdist._utils.signals import RESUME, SHUTDOWN, Interrupted, interruptible, resumable

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def test_a_second_signal_stops_at_once() -> None:
    with interruptible():
        with pytest.raises(Interrupted), SHUTDOWN.deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            assert SHUTDOWN.requested == signal.SIGTERM
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):  # nothing is under way: the first one does
            SHUTDOWN.requested = None
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", NUMBERS)
def test_code_that_explains_what_goes_wrong_lets_a_signal_pass(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interruptible():
        try:
            signal.raise_signal(number)
        except Exception as error:
            raise AssertionError from error
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_a_signal_that_came_within_the_last_update_is_not_forgotten() -> None:
    with interruptible():
        with SHUTDOWN.deferred_signals():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT"):
            SHUTDOWN.stop_if_requested()
        SHUTDOWN.requested = None
        SHUTDOWN.stop_if_requested()


def test_under_nohup_a_hangup_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_worker_leaves_the_end_to_its_parent() -> None:
    """A Ctrl-C comes to all processes of the terminal; a loader that ended would take the last update with it."""
    with interruptible():
        if (child := os.fork()) == 0:
            try:
                signal.raise_signal(signal.SIGINT)
                os._exit(7)
            except BaseException:
                os._exit(1)
        assert exit_of_a_child(child) == 7


@pytest.mark.parametrize("error", [Interrupted(signal.SIGINT), OSError(28, "No space left on device")])
def test_what_can_be_resumed_says_so(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, resumable():
        raise error
    assert caught.value.__notes__ == [RESUME]


def exit_of_a_child(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_signal_within_an_import_ends_the_process_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """numpy, torch and diffusers swallow what is raised there, whatever it is, and go on in pieces."""
    (tmp_path / "slow_module.py").write_text("import signal\ntry: signal.raise_signal(signal.SIGINT)\nexcept: pass")
    if (child := os.fork()) == 0:
        sys.path.insert(0, str(tmp_path))
        with interruptible():
            import_module("slow_module")
        os._exit(0)
    assert exit_of_a_child(child) == 130
    assert capfd.readouterr().err == "progdist: stopped by SIGINT.\n"


@pytest.mark.usefixtures("hangups")
def test_a_signal_before_the_command_is_known_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("progdist.cli.app.start", lambda: signal.raise_signal(signal.SIGHUP))
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 129
    assert capfd.readouterr().err == "progdist: stopped by SIGHUP.\n"
