"""Progressive distillation of diffusion models (Salimans & Ho, 2022).

    from progdist import Cosine, Denoiser, PARAMETERIZATIONS, distill, sample, load, save

The mathematics stands in `schedule`, `parameterization`, `denoiser`, `sampler`, `objective` and `distillation`, in that
order, each opening with its equations.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from progdist._errors import UserError
from progdist.api import load, sample, save
from progdist.denoiser import Denoiser
from progdist.distillation import distillation_loss, distillation_target
from progdist.objective import WEIGHTINGS, denoising_loss
from progdist.parameterization import PARAMETERIZATIONS
from progdist.schedule import Cosine, Discrete, RectifiedFlow, Schedule

if TYPE_CHECKING:
    from progdist.one_call import distill

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
        from progdist.one_call import distill

        return distill
    raise AttributeError(f"module 'progdist' has no attribute {name!r}")
