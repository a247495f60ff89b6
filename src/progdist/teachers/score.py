r"""Score-based networks with exploding noise (Song et al. 2021, arXiv 2011.13456): teachers of their stock schedulers.

A UNet2DModel with `time_embedding_type` fourier takes images y in [0, 1] with noise of deviation s, and s itself, and
returns the score -eps / s. For x = 2 y - 1 in [-1, 1] the noise doubles: with z = x + sigma eps

    y + s eps = (z + 1) / 2,    s = sigma / 2,    eps = -s F((z + 1) / 2, s)

(`progdist.models.networks` calls it so). ScoreSdeVeScheduler gives its levels as s, KarrasVeScheduler as sigma.

No stock scheduler steps without new noise at given levels with such a network: its students, which predict x instead
of eps, are sampled by `progdist.sample`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import VarianceExploding
from progdist.models.conditioning import Spacing
from progdist.teachers.schedulers import Formulation, SchedulerKind, class_defaults

SCALES = {"ScoreSdeVeScheduler": 2.0, "KarrasVeScheduler": 1.0}
"""Factor of the levels in a scheduler's config, for images in [-1, 1]."""


def read(folder: Path, config: Mapping[str, Any]) -> Formulation:
    """Read the noise of a scheduler's config, even in its logarithm. Raise a UserError if it is damaged."""
    defaults, scale = class_defaults(config["_class_name"]), SCALES[config["_class_name"]]
    low, high = (config.get(end, defaults[end]) for end in ("sigma_min", "sigma_max"))
    try:
        schedule = VarianceExploding(scale * low, scale * high, math.inf)
    except (UserError, TypeError, OverflowError) as error:
        raise UserError(f"{folder}/scheduler is damaged ({str(error)[:200]}): restore it") from error
    return Formulation(schedule, PARAMETERIZATIONS["eps"], 0.0, num_train_timesteps=1)


def write(denoiser: Denoiser, steps: int | None, spacing: Spacing = "stock") -> None:
    """None: there is no such scheduler."""


SCORE = SchedulerKind(
    classes=tuple(SCALES),
    read=read,
    write=write,
    fields=frozenset((
        *("sigma_min", "sigma_max"),
        *("snr", "sampling_eps", "correct_steps"),  # ScoreSdeVeScheduler's own steps
        *("s_noise", "s_churn", "s_min", "s_max"),  # KarrasVeScheduler's
    )),
)  # fmt: skip
