"""The training configuration of one network: the one place where each option is declared and validated.

Recipes, commands and the Python call share `DEFAULTS`. Teachers are trained as in the paper's appendix E; the learning
rate of distillation was chosen by measurement (docs/results/own-model.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_type_hints

from progdist._utils.errors import UserError
from progdist._utils.names import Optimizer, Precision
from progdist._utils.other_names import meant
from progdist._utils.words import counted


@dataclass(frozen=True)
class TrainConfig:
    """How one network is trained.

    Args:
        updates: K, optimiser steps.
        batch: examples in a global batch.
        learning_rate: the peak rate.
        warmup: updates over which the rate rises from 0.
        lr_scheduler: "linear" to 0 at the last update, or "constant".
        weight_decay: decoupled, scaled by the rate.
        max_grad_norm: the norm to which gradients are clipped; 0 for no clipping.
        ema: decay of the average of the weights; 0 for none.
        gradient_accumulation_steps: parts in which a process computes its share of the batch, to save memory.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        compile: whether to compile the network with torch.compile, which takes a minute or more.
        cuda_graphs: capture kernels and launch them together: see `progdist.compute.cuda_graphs`.
        lora_rank: rank of the LoRA adapters, which alone are trained; 0 to train all weights.
        max_skipped_updates: most consecutive updates skipped because their loss or gradient is not finite.
        precision: "bf16" autocasts the network; "auto" selects what is faster on the device.
        checkpoint_every: updates between checkpoints.
        adam_beta1: decay of the mean of the gradients.
        adam_beta2: decay of the mean of their squares.
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
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    lora_rank: int = 0
    max_skipped_updates: int = 10
    precision: Precision = "auto"
    checkpoint_every: int = 1000
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        """Raises: UserError: a number is out of range, a name is unknown, or two options exclude each other."""
        for name, hint in _TYPES.items():
            value = getattr(self, name)
            if (isinstance(value, bool) and hint is not bool) or not isinstance(value, hint):
                raise UserError(f"{name} is {repr(value)[:50]}, expected {_NAMES[hint]}")
            if isinstance(value, Integral) and int(value) >= EXACT:
                raise UserError(f"{name} is {repr(value)[:50]}, expected less than 2^53")
        for name in ("updates", "batch", "gradient_accumulation_steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("warmup", "weight_decay", "max_grad_norm", "lora_rank", "max_skipped_updates"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate is {self.learning_rate}, expected a positive number")
        for name in ("ema", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(choices)}")
        if self.batch % self.gradient_accumulation_steps:
            raise UserError(
                f"batch {self.batch} is not divisible by {self.gradient_accumulation_steps} gradient_accumulation_steps"
            )
        others = {
            "compile": self.compile,
            "gradient_checkpointing": self.gradient_checkpointing,
            "gradient_accumulation_steps": self.gradient_accumulation_steps > 1,
        }
        if self.cuda_graphs and (excluded := [name for name, value in others.items() if value]):
            raise UserError(f"cuda_graphs and {excluded[0]} exclude each other: remove one of them")

    @property
    def record_every(self) -> int:
        """Updates between records, about a thousand in all; only then do the numbers leave the device."""
        return max(1, self.updates // 1000)

    @property
    def ema_warning(self) -> str | None:
        """The warning about an average that is too long for the training; None if it is not."""
        later = self.updates - 1  # updates after the first, whose weights start the average
        share = self.ema**later
        if not self.ema or not later or share <= MOST_OF_THE_START:
            return None
        fits = _rounded_down(MOST_OF_THE_START ** (1 / later))
        remedy = f"set ema to {fits} or less (0: no average)" if float(fits) else "set ema to 0"
        return (
            f"ema {self.ema:g} is too long for {counted(self.updates, 'update')}: the saved average of the weights is "
            f"{share:.0%} the weights at the start; {remedy}"
        )

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of one update, counted from 0."""
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        fall = 1 - update / self.updates if self.lr_scheduler == "linear" else 1.0
        return self.learning_rate * rise * fall

    def overridden(self, **options: Any) -> "TrainConfig":  # noqa: ANN401
        """The configuration, without a subclass's fields, with some options replaced; a UserError for unknown ones."""
        names = OPTIONS
        if unknown := sorted(options.keys() - set(names)):
            near = meant(unknown[0], names)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"training option {unknown[0]!r} is unknown: {hint}use one of {', '.join(names)}")
        return TrainConfig(**{name: options.get(name, getattr(self, name)) for name in names})


def _rounded_down(decay: float) -> str:
    """Format a decay with as many digits as 1 - decay needs for one."""
    digits = max(1, math.ceil(-math.log10(1 - decay)))
    return f"{math.floor(decay * 10**digits) / 10**digits:g}"


EXACT = 2**53  # integers from here on are not exact as floats
MOST_OF_THE_START = 0.05  # largest share of the initial weights in an average without a warning

OPTIONS = tuple(field.name for field in fields(TrainConfig))  # the names of all options

_CHOICES = {
    name: get_args(hint) for name, hint in get_type_hints(TrainConfig).items() if name in OPTIONS and get_args(hint)
}

_NAMES: Mapping[type, str] = {Integral: "a whole number", Real: "a number", bool: "True or False"}

_TYPES: Mapping[str, type] = {
    name: {int: Integral, float: Real, bool: bool}[hint]
    for name, hint in get_type_hints(TrainConfig).items()
    if name in OPTIONS and hint in (int, float, bool)
}

OF_A_WHOLE_TRAINING = ("batch", "ema", "lora_rank")
"""Options that cannot change once a training has started; a stage of a chain cannot override them."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "teacher": {"updates": 100_000, "batch": 128, "learning_rate": 2e-4, "warmup": 1000, "ema": 0.9999},
    "conversion": {"batch": 64, "learning_rate": 5e-4, "warmup": 100, "lr_scheduler": "linear"},
    "distill": {"updates": 1000, "batch": 64, "learning_rate": 5e-4, "lr_scheduler": "linear"},
}
"""For training a teacher, stage 0 (`updates`: CONVERSION_UPDATES times a stage's) and every stage of the chain."""

CONVERSION_UPDATES = 4  # default updates of stage 0, as a multiple of a stage's
