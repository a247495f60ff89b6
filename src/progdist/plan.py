"""How one network is trained, in numbers, and what is told of each update."""

import math
from dataclasses import dataclass
from typing import Literal

from progdist.precision import Precision


@dataclass(frozen=True)
class Plan:
    """How one network is trained.

    Args:
        updates: K, optimiser steps.
        batch: examples in a global batch.
        learning_rate: at its highest.
        warmup: updates over which the rate rises from 0.
        anneal: "linear" to 0 at the last update, or "none".
        weight_decay: decoupled, scaled by the rate.
        clip: global gradient norm; 0 for no clipping.
        ema: decay of the weights' average; 0 for none.
        dropout: whether the network's dropout is at work.
        microbatches: parts in which a process takes its rows, to save memory.
        gradient_checkpointing: compute the network's inner values twice rather than keep them, to save memory.
        lora_rank: of the corrections that alone are trained (see `progdist.adapters`); 0 for all weights.
        most_skips: updates in a row that are passed over because their loss or gradient is not finite.
        precision: "bf16" autocasts the network, "float32" does not, "auto" takes what is faster on the device.
        checkpoint_every: updates between checkpoints.
    """

    updates: int
    batch: int
    learning_rate: float
    warmup: int = 0
    anneal: Literal["linear", "none"] = "none"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    dropout: bool = False
    microbatches: int = 1
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    most_skips: int = 10
    precision: Precision = "auto"
    checkpoint_every: int = 1000

    def rate(self, update: int) -> float:
        """The learning rate of one update, counted from 0."""
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        fall = 1 - update / self.updates if self.anneal == "linear" else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class Progress:
    """What an observer is told after each update (counted from 1); `skipped` counts those that made no step."""

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
