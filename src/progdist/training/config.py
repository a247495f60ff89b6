"""The training configuration of one network."""

import math
from dataclasses import dataclass
from typing import Literal

from progdist._utils.errors import UserError
from progdist._utils.names import Optimizer, Precision


@dataclass(frozen=True)
class TrainConfig:
    """How one network is trained.

    Args:
        updates: K, optimiser steps.
        batch: examples in a global batch.
        learning_rate: at its highest.
        warmup: updates over which the rate rises from 0.
        lr_scheduler: "linear" to 0 at the last update, or "constant".
        weight_decay: decoupled, scaled by the rate.
        max_grad_norm: to which gradients are clipped; 0 for no clipping.
        ema: decay of the weights' average; 0 for none.
        dropout: whether the network's dropout is at work.
        gradient_accumulation_steps: parts in which a process takes its share of the batch, to save memory.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        compile: whether torch.compile makes faster code of the network first, which takes a minute or more.
        cuda_graphs: whether the networks' kernels are captured once and launched together (see
            `progdist.compute.cuda_graphs`): for small networks, on a GPU, in one process.
        lora_rank: rank of the LoRA adapters that alone are trained; 0 to train all weights.
        max_skipped_updates: updates in a row that are passed over because their loss or gradient is not finite.
        precision: "bf16" autocasts the network, "float32" does not, "auto" takes what is faster on the device.
        checkpoint_every: updates between checkpoints.
        optimizer: "adamw", or "adamw8bit" whose moments take a quarter of the memory (extra `bnb`).
    """

    updates: int
    batch: int
    learning_rate: float
    warmup: int = 0
    lr_scheduler: Literal["linear", "constant"] = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema: float = 0.0
    dropout: bool = False
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    lora_rank: int = 0
    max_skipped_updates: int = 10
    precision: Precision = "auto"
    checkpoint_every: int = 1000
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing is trained, and what excludes each other.

        Raises:
            UserError: names the number, or both.
        """
        for name in ("batch", "gradient_accumulation_steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("updates", "learning_rate", "warmup", "weight_decay", "max_grad_norm", "max_skipped_updates"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more")
        others = {
            "compile": self.compile,
            "gradient_checkpointing": self.gradient_checkpointing,
            "gradient_accumulation_steps": self.gradient_accumulation_steps > 1,
        }
        if self.cuda_graphs and (given := [name for name, wanted in others.items() if wanted]):
            raise UserError(f"cuda_graphs and {given[0]} exclude each other: leave one of them out")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}, expected at least 0 and less than 1")

    @property
    def record_every(self) -> int:
        """Updates between records, about a thousand of them; only there the numbers leave the device."""
        return max(1, self.updates // 1000)

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of one update, counted from 0."""
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        fall = 1 - update / self.updates if self.lr_scheduler == "linear" else 1.0
        return self.learning_rate * rise * fall
