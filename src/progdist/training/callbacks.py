"""What a run reports while it trains, and the protocol of whoever watches it."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

Record = dict[str, Any]
"""One line of metrics.jsonl or evaluations.jsonl."""


@dataclass(frozen=True)
class Progress:
    """What a callback receives about a thousand times in a training.

    Attributes:
        update: the number of updates made.
        loss: of the last of them, the mean over the global batch.
        gradient_norm: of the last, before clipping.
        learning_rate: of the last.
        seconds: of training, all sessions together.
        skipped: updates that made no step, since their loss or gradient was not finite.
    """

    update: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    skipped: int = 0

    @property
    def finite(self) -> bool:
        """Whether the update made a step."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Callback(Protocol):
    """Receives the events of a run."""

    def begin(self, title: str, updates: int) -> None:
        """The training of a network starts or resumes."""

    def progress(self, progress: Progress) -> None:
        """An update was made."""

    def end(self) -> None:
        """The training of that network ended."""

    def evaluated(self, record: Record) -> None:
        """A model was measured at a step count."""

    def note(self, text: str) -> None:
        """A message for the user."""
