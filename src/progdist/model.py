"""A denoiser with what its folder tells of it, and the stock scheduler that samples it on our grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from progdist._errors import UserError
from progdist.denoiser import Denoiser
from progdist.latents import Autoencoder
from progdist.network import image_shape
from progdist.parameterization import PARAMETERIZATIONS
from progdist.schedule import RectifiedFlow, VariancePreserving

PREDICTION_TYPES: dict[str, Literal["sample", "epsilon", "v_prediction"]] = {
    "x": "sample",
    "eps": "epsilon",
    "v": "v_prediction",
}
"""Our parameterizations as DDIMScheduler names them."""


@dataclass(frozen=True)
class Model:
    """A denoiser with what its folder tells of it.

    Attributes:
        denoiser: ready to sample.
        steps: the step counts it was trained for; empty for a model of any step count.
        lineage: the step counts of its ancestors, teacher first.
        classes: names of the classes, in the order of the labels; empty if unconditional.
        data: the source of its training images.
        training: numbers of its training, for the record.
        autoencoder: of a latent model; None where the network sees images.
    """

    denoiser: Denoiser
    steps: Sequence[int] = ()
    lineage: Sequence[int] = ()
    classes: Sequence[str] = ()
    data: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: Autoencoder | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees: images, or their latents."""
        shape = image_shape(self.denoiser.network)
        if shape is None:
            kind = type(self.denoiser.network).__name__
            raise UserError(f"this {kind} does not tell the shape of its data: set sample_size in its config.json")
        return shape

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it makes."""
        return self.autoencoder.image(self.shape) if self.autoencoder else self.shape

    def to(self, device: torch.device) -> "Model":
        """Itself, moved to a device."""
        self.denoiser.to(device)
        if self.autoencoder:
            self.autoencoder.network.to(device)  # pyright: ignore[reportArgumentType]
        return self


def parameterization_name(denoiser: Denoiser) -> str:
    """The parameterization's name."""
    return next(name for name, kind in PARAMETERIZATIONS.items() if type(kind) is type(denoiser.parameterization))


def stock_scheduler(denoiser: Denoiser) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler | None:
    """The diffusers scheduler that samples this denoiser's network on our grid; None where there is none."""
    schedule, kind, count = denoiser.schedule, parameterization_name(denoiser), denoiser.timesteps
    if isinstance(schedule, VariancePreserving) and kind in PREDICTION_TYPES and denoiser.offset == 1:
        t = torch.arange(count + 1, dtype=torch.float64) / count
        alpha_bar = schedule.alpha(t) ** 2
        betas = 1 - alpha_bar[1:] / alpha_bar[:-1].clone().index_fill_(0, torch.tensor(0), 1.0)
        return DDIMScheduler(
            num_train_timesteps=count,
            trained_betas=betas.tolist(),
            timestep_spacing="trailing",
            prediction_type=PREDICTION_TYPES[kind],
            clip_sample=False,
        )
    if isinstance(schedule, RectifiedFlow) and kind == "velocity" and denoiser.offset == 0:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=count)
    return None
