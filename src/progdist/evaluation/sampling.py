"""Sampling in batches, with autocast and decoding."""

import torch
from torch import Tensor

from progdist._utils.precision import Precision, autocast
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.sampler import Step, sample
from progdist.models.model import Model
from progdist.models.unet import condition


def sample_in_batches(
    model: Model,
    noise: Tensor,
    labels: Tensor,
    steps: int,
    batch: int,
    *,
    precision: Precision = "float32",
    clip: bool = False,
    method: str | Step = "ddim",
    draw: torch.Generator | None = None,
    denoiser: DenoiserProtocol | None = None,
) -> Tensor:
    """Images (N, C, H, W) on the CPU from noise (N, C, H, W), labels (N,), and the noise of stochastic methods.

    The noise is of a latent model's latents. `denoiser` stands in for the model's own.
    """
    device = next(model.denoiser.parameters()).device
    images = []
    with autocast(device, precision):
        for part, classes in zip(noise.split(batch), labels.split(batch), strict=True):
            condition_kwargs = condition(model.denoiser.network, classes.to(device))
            made = sample(
                denoiser or model.denoiser,
                part.to(device),
                steps,
                method=method,
                clip=clip,
                generator=draw,
                **condition_kwargs,
            )
            images.append(made.float().cpu())
    return model.autoencoder.decode(torch.cat(images)) if model.autoencoder else torch.cat(images)
