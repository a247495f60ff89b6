"""What a run reports while it trains, and the protocol of whoever watches it."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

Record = dict[str, Any]
"""One line of metrics.jsonl or evaluations.jsonl."""


@dataclass(frozen=True)
class Progress:
    """What an callback is told after each update (counted from 1); `skipped` counts those that made no step."""

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
    """Whoever watches a run."""

    def begin(self, title: str, updates: int) -> None:
        """A network's training starts or goes on."""

    def progress(self, progress: Progress) -> None:
        """One update was made."""

    def end(self) -> None:
        """That network is trained."""

    def evaluated(self, record: Record) -> None:
        """A model was measured at a step count."""

    def note(self, text: str) -> None:
        """Something worth a line."""
