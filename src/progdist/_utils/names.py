"""Names that options accept, kept apart from what they stand for so that the command line needs no torch."""

from typing import Literal

Precision = Literal["auto", "float32", "bf16"]  # see `progdist.compute.precision`
Bits = Literal[8, 4]  # see `progdist.compute.quantized`
Optimizer = Literal["adamw", "adamw8bit"]  # see `progdist.training.state`

# what a student learns (see `progdist.methods`)
Distillation = Literal["progressive", "balanced", "adversarial", "stochastic", "tract"]
# how a sampler steps (see `progdist.diffusion.sampler`)
Method = Literal["ddim", "ancestral", "overshoot", "consistency", "euler", "euler_log_snr", "heun", "rk4", "dpmpp"]
# the feature spaces in which samples are compared with data (see `progdist.evaluation.features`)
Features = Literal[
    "digits", "digits_residual", "fashion-mnist", "fashion-mnist_residual",
    "pixels", "inception", "inception_clean", "inception_spatial", "dinov2",
]  # fmt: skip
# what is measured besides the Frechet and the kernel distance (see `progdist.evaluation.metrics`)
Metric = Literal[
    "inception_score", "precision_recall", "density_coverage", "nearest_distance", "class_diversity", "clip_score"
]

LEAST_SAMPLES = 20  # the samples and data images that each `Metric` needs at least
