"""What the terminal shows."""

import math

import pytest


def test_a_skipped_update_leaves_the_loss_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from progdist.cli.progress import Terminal
    from progdist.training.callbacks import Progress

    terminal = Terminal(Console(width=80))
    terminal.begin("teacher", 3)
    for update, loss in enumerate((math.nan, 0.5, math.nan), 1):
        terminal.progress(Progress(update, loss, 1.0, 1e-3, 0.1))
    terminal.end()
    assert "loss 0.5000" in capsys.readouterr().out
