"""Progressive distillation of diffusion models (Salimans & Ho, 2022).

    from progdist import Cosine, Denoiser, PARAMETERIZATIONS, distill, sample, load, save

The mathematics stands in `schedule`, `parameterization`, `denoiser`, `sampler`, `objective` and `distillation`, in that
order, each opening with its equations.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from progdist._errors import UserError
from progdist.denoiser import Denoiser
from progdist.distillation import distillation_loss, distillation_target
from progdist.objective import WEIGHTINGS, denoising_loss
from progdist.parameterization import PARAMETERIZATIONS
from progdist.sampler import sample
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


def load(folder: str | Path) -> Denoiser:
    """The denoiser of a model folder, in evaluation mode on the CPU.

    Raises:
        UserError: the folder is missing, no model folder, or damaged.
    """
    from progdist.model_folder import load as load_model  # diffusers takes seconds to import

    return load_model(Path(folder)).denoiser


def save(denoiser: Denoiser, folder: str | Path, *, steps: Sequence[int] = ()) -> None:
    """Write a model folder that stock diffusers loads, too.

    Args:
        denoiser: around a UNet2DModel.
        folder: must not exist.
        steps: the step counts it was distilled for; none for a model of any step count.

    Raises:
        UserError: another network, or the folder exists.
    """
    from progdist.model import Model
    from progdist.model_folder import save as save_model

    save_model(Model(denoiser, steps), Path(folder))


def __getattr__(name: str) -> object:
    """`distill`, imported when it is first asked for: accelerate takes seconds."""
    if name == "distill":
        from progdist.one_call import distill

        return distill
    raise AttributeError(f"module 'progdist' has no attribute {name!r}")
