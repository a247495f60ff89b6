"""A run's page during the run, rewritten after every evaluation and every minute of training.

If evaluations follow one another faster than pages should be written, one page shows several; the run itself writes
the first and the last. A page that cannot be written does not end the training: a warning is printed once, and the next
page is tried.
"""

import time
from dataclasses import dataclass, field, replace

from progdist._utils.errors import UserError
from progdist.evaluation.record import EvaluationRecord
from progdist.runs.folder import RunFolder
from progdist.runs.pages.progress import UnderWay
from progdist.runs.pages.report import write_report
from progdist.training.callbacks import Callback, Progress

EVERY = 60.0  # seconds of training between two pages
SHARE = 0.01  # largest share of the training time for pages: if one takes long, fewer are written
SHARE_AFTER_EVALUATION = 0.1  # the same after a measurement: models measured within seconds share a page


@dataclass
class LiveReport:
    """A callback that also keeps a run's report.html up to date; only in the first process of a run."""

    callback: Callback  # the callback that shows the events
    folder: RunFolder
    under_way: UnderWay | None = field(default=None, init=False)  # the current training; None in between
    _first: Progress | None = field(default=None, init=False)
    _written: float = field(default=-EVERY, init=False)
    _took: float = field(default=0.0, init=False)
    _behind: bool = field(default=False, init=False)  # whether a model was measured since the last page
    _failed: bool = field(default=False, init=False)  # whether the warning about an unwritable page was printed

    def begin(self, title: str, updates: int) -> None:
        """The training of a network starts or resumes."""
        self.under_way, self._first = UnderWay(title, 0, updates), None
        self.callback.begin(title, updates)

    def progress(self, progress: Progress) -> None:
        """Updates were made; write the page if it is due and the rate is known."""
        self.callback.progress(progress)
        first = self._first = self._first or progress
        made = progress.update - first.update
        if self.under_way:
            rate = (progress.seconds - first.seconds) / made if made else None
            self.under_way = replace(self.under_way, update=progress.update, seconds_per_update=rate)
        if made:
            self._write_if_due()

    def end(self, stopped: int | None = None) -> None:
        """The training of that network ended or stopped."""
        self.under_way = None
        self.callback.end(stopped)

    def evaluated(self, record: EvaluationRecord) -> None:
        """A model was measured at a step count."""
        self.callback.evaluated(record)
        self._behind = True
        self._write_if_due()

    def note(self, text: str) -> None:
        """A message for the user."""
        self.callback.note(text)

    def _write_if_due(self) -> None:
        """Write the page if the last one is old enough, and record the time it took."""
        started = time.monotonic()
        pause = self._took / SHARE_AFTER_EVALUATION if self._behind else max(EVERY, self._took / SHARE)
        if started - self._written < pause:
            return
        try:
            write_report(self.folder, self.under_way)
        except (OSError, UserError) as error:
            if not self._failed:
                self.note(f"warning: the live report cannot be written ({error}): the run continues without it")
            self._failed = True
        self._written, self._behind = time.monotonic(), False
        self._took = self._written - started


def live(folder: RunFolder, callback: Callback) -> Callback:
    """The callback, or in the first process one that also keeps the page up to date."""
    return LiveReport(callback, folder) if folder.writes else callback
