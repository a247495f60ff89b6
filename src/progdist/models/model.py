"""A denoiser with what its folder tells of it, and the stock scheduler that samples it on our grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import Parameterization
from progdist.diffusion.schedule import RectifiedFlow, Schedule, VariancePreserving
from progdist.models.autoencoder import Autoencoder
from progdist.models.unet import image_shape

PREDICTION_TYPES: dict[str, Literal["sample", "epsilon", "v_prediction"]] = {
    "x": "sample",
    "eps": "epsilon",
    "v": "v_prediction",
}
"""Our parameterizations as DDIMScheduler names them."""


class LatentDenoiser(Denoiser):
    """A denoiser of latents with the autoencoder that makes images of them; arguments as of Denoiser.

    Args:
        autoencoder: decodes what is sampled.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parameterization: Parameterization,
        *,
        autoencoder: Autoencoder,
        timesteps: int = 1024,
        offset: float | None = None,
    ) -> None:
        super().__init__(network, schedule, parameterization, timesteps=timesteps, offset=offset)
        self.autoencoder = autoencoder

    def with_network(self, network: nn.Module) -> "LatentDenoiser":
        """The same around another network."""
        return latent_denoiser(super().with_network(network), self.autoencoder)

    def with_form_of(self, other: Denoiser) -> "LatentDenoiser":
        """Another denoiser of these latents."""
        return latent_denoiser(other, self.autoencoder)


def latent_denoiser(denoiser: Denoiser, autoencoder: Autoencoder) -> LatentDenoiser:
    """A denoiser, together with the autoencoder of its latents."""
    return LatentDenoiser(
        denoiser.network,
        denoiser.schedule,
        denoiser.parameterization,
        autoencoder=autoencoder,
        timesteps=denoiser.timesteps,
        offset=denoiser.offset,
    )


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


def stock_scheduler(denoiser: Denoiser) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler | None:
    """The diffusers scheduler that samples this denoiser's network on our grid; None where there is none."""
    schedule, kind, count = denoiser.schedule, denoiser.parameterization.name, denoiser.timesteps
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
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=count, shift=schedule.shift)
    return None
