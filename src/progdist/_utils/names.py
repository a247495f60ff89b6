"""Names that options take, apart from what they stand for, so that the command line knows them without torch."""

from typing import Literal

Precision = Literal["auto", "float32", "bf16"]
"""What can be asked for (see `progdist._utils.precision`)."""

Optimizer = Literal["adamw", "adamw8bit"]
"""What updates weights (see `progdist.training.state`)."""

Method = Literal["ddim", "ancestral", "overshoot", "euler", "euler_log_snr", "heun", "rk4"]
"""How a sampler steps (see `progdist.diffusion.sampler`)."""
