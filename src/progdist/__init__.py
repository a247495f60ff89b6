"""Progressive distillation of diffusion models (Salimans & Ho, 2022).

    from progdist import Cosine, Denoiser, PARAMETERIZATIONS, distill, sample, load, save

The mathematics is in `progdist.diffusion` (schedule, parameterization, denoiser, sampler, loss) and the method in
`progdist.distillation` (progressive, chain, conversion); each module opens with its equations.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from progdist._utils.errors import UserError
from progdist.api.models import load, sample, save
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import Cosine, Discrete, RectifiedFlow, Schedule
from progdist.distillation.progressive import distillation_loss, distillation_target

if TYPE_CHECKING:
    from progdist.api.distill import distill

__version__ = version("progdist")

__all__ = [
    "PARAMETERIZATIONS",
    "WEIGHTINGS",
    "Cosine",
    "Denoiser",
    "Discrete",
    "RectifiedFlow",
    "Schedule",
    "UserError",
    "denoising_loss",
    "distill",
    "distillation_loss",
    "distillation_target",
    "load",
    "sample",
    "save",
]


def __getattr__(name: str) -> object:
    """`distill`, imported when it is first asked for: accelerate takes seconds."""
    if name == "distill":
        from progdist.api.distill import distill

        return distill
    raise AttributeError(f"module 'progdist' has no attribute {name!r}")
