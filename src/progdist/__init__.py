"""Progressive distillation of diffusion models (Salimans & Ho, 2022).

    from progdist import Cosine, Denoiser, PARAMETERIZATIONS, distill, sample, load, save

The mathematics is in `progdist.diffusion` (schedule, parameterization, denoiser, sampler, loss) and the method in
`progdist.methods` (progressive, chain, conversion); each module opens with its equations.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from progdist._utils.errors import UserError
    from progdist.api.distill import distill
    from progdist.api.models import check, load, sample, save
    from progdist.data.sources import load_images
    from progdist.diffusion.denoiser import Denoiser
    from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
    from progdist.diffusion.parameterization import PARAMETERIZATIONS
    from progdist.diffusion.schedule import Cosine, Discrete, Karras, RectifiedFlow, Schedule, VarianceExploding
    from progdist.evaluation.evaluate import evaluate
    from progdist.evaluation.generate import SamplingOptions
    from progdist.evaluation.metrics import MetricConfig
    from progdist.methods import METHODS
    from progdist.methods.method import Method
    from progdist.methods.progressive import distillation_loss, distillation_target
    from progdist.training.config import TrainConfig
    from progdist.training.early_stopping import EarlyStopping

    __version__: str

_MODULES = {
    "_utils.errors": ["UserError"],
    "data.sources": ["load_images"],
    "evaluation.evaluate": ["evaluate"],
    "evaluation.generate": ["SamplingOptions"],
    "evaluation.metrics": ["MetricConfig"],
    "methods": ["METHODS", "Method"],
    "training.config": ["TrainConfig"],
    "training.early_stopping": ["EarlyStopping"],
    "api.distill": ["distill"],
    "api.models": ["check", "load", "sample", "save"],
    "diffusion.denoiser": ["Denoiser"],
    "diffusion.loss": ["WEIGHTINGS", "denoising_loss"],
    "diffusion.parameterization": ["PARAMETERIZATIONS"],
    "diffusion.schedule": ["Cosine", "Discrete", "Karras", "RectifiedFlow", "Schedule", "VarianceExploding"],
    "methods.progressive": ["distillation_loss", "distillation_target"],
}

__all__ = [
    "METHODS", "PARAMETERIZATIONS", "WEIGHTINGS", "Cosine", "Denoiser", "Discrete", "EarlyStopping", "Karras",
    "Method", "MetricConfig", "RectifiedFlow", "SamplingOptions", "Schedule", "TrainConfig", "UserError",
    "VarianceExploding", "check", "denoising_loss", "distill", "distillation_loss", "distillation_target", "evaluate",
    "load", "load_images", "sample", "save",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for: torch and diffusers take seconds."""
    if name == "__version__":
        return import_module("importlib.metadata").version("progdist")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"progdist.{module}"), name)
    raise AttributeError(f"module 'progdist' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*globals(), *__all__]
