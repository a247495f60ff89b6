"""Names that options take, apart from what they stand for, so that the command line knows them without torch."""

from typing import Literal

Precision = Literal["auto", "float32", "bf16"]
"""What can be asked for (see `progdist.compute.precision`)."""

Optimizer = Literal["adamw", "adamw8bit"]
"""What updates weights (see `progdist.training.state`)."""

Method = Literal["ddim", "ancestral", "overshoot", "consistency", "euler", "euler_log_snr", "heun", "rk4", "dpmpp"]
"""How a sampler steps (see `progdist.diffusion.sampler`)."""

Features = Literal["digits", "fashion-mnist", "pixels", "inception", "inception_clean", "inception_spatial", "dinov2"]
"""Where samples are compared with data (see `progdist.evaluation.features`)."""

Metric = Literal["inception_score", "precision_recall", "density_coverage", "clip_score"]
"""What is measured beside the Frechet and the kernel distance (see `progdist.evaluation.metrics`)."""

LEAST_SAMPLES = 20
"""Samples, and images of the data, that each `Metric` needs."""
