"""What a run reports while it trains, and the protocol of its observers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Progress:
    """What a callback receives about a thousand times during training."""

    update: int  # the number of updates made
    loss: float  # of the last update, the mean over the global batch
    gradient_norm: float  # of the last update, before clipping
    learning_rate: float  # of the last update
    seconds: float  # of training, over all sessions
    skipped: int = 0  # updates without a step, since their loss or gradient was not finite
    losses: Mapping[str, float] = field(default_factory=dict)  # the parts of the loss by name, if there are several

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

    def end(self, stopped: int | None = None) -> None:
        """The training of that network ended, or was stopped by a signal or an error with that many updates saved."""

    def evaluated(self, record: Any) -> None:  # noqa: ANN401  (an `EvaluationRecord`, which training does not know)
        """A model was measured at a step count."""

    def note(self, text: str) -> None:
        """A message for the user."""
