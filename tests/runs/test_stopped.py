"""A training that is stopped says where, in the terminal and on its page, whatever stopped it."""

import errno
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from progdist._utils.errors import UserError
from progdist._utils.signals import RESUME
from progdist.cli.progress import Terminal
from progdist.runs.folder import RunFolder
from progdist.runs.listing import FAILED, FINISHED, STOPPED, runs_in
from progdist.training.callbacks import Progress
from support.commands import SHORT_EVALUATION, call, succeeds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hangups")]


def fails(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (lambda: signal.raise_signal(signal.SIGINT), 130, f"stopped by SIGINT. {RESUME}"),
        (lambda: signal.raise_signal(signal.SIGHUP), 129, f"stopped by SIGHUP. {RESUME}"),
        (fails(UserError("7.png cannot be read")), 2, "7.png cannot be read"),
        (fails(FULL), 2, f"metrics.jsonl: No space left on device: free some space. {RESUME}"),
    ],
    ids=["SIGINT", "SIGHUP", "damaged file", "full disk"],
)
def test_what_is_said_of_a_training_that_stopped(
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[], None],
    code: int,
    said: str,
) -> None:
    out, shown, kept = tmp_path / "run", Terminal.progress, 6
    words = ("run", tiny_recipe, "--out", out, "--set", "distill.chain=[2, 1]", *SHORT_EVALUATION)

    def progress(self: Terminal, now: Progress) -> None:
        shown(self, now)
        if now.update == kept:
            stop()

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "progress", progress)
        result = call(*words)
    assert (result.exit_code, result.stderr) == (code, f"progdist: {said}\n")
    (listed,) = runs_in(out)
    assert (listed.state, listed.place) == (STOPPED if "SIG" in said else FAILED, f"teacher at {kept}")
    assert bool(listed.reason) == (listed.state == FAILED)
    assert f"teacher: stopped at update {kept} of 12\n" in result.stdout
    assert "trained in" not in result.stdout
    assert RunFolder(out).checkpoints("teacher").latest_update() == kept
    page, page_says = (out / "report.html").read_text(), said.partition(": free")[0]
    how, why = ("Failed", f": {page_says}") if code == 2 else ("Stopped", "")
    line = f"<strong>{how}</strong> at update {kept} of 12 of teacher{why}. Run the same command to resume."
    assert line in page
    assert page.index(line) < page.index("<p>A diffusion teacher")  # the first line below the name
    if code == 130:
        assert "teacher: trained in" in succeeds(*words).stdout
        assert "<strong>Finished</strong>: 1 student, of 1 step." in (out / "report.html").read_text()
        assert [listed.state for listed in runs_in(out)] == [FINISHED]
