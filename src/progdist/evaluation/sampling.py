"""Sampling in batches, with autocast and decoding."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from progdist._utils.names import Precision
from progdist.compute.precision import autocast
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.integrators import Step
from progdist.diffusion.sampler import sample
from progdist.models.model import Model
from progdist.models.unet import Conditions, class_conditions

NOISE_BLOCK = 16
"""Examples drawn at a time: torch draws whole blocks of 16 numbers, so pieces of 16 give the numbers of one draw."""


def noise_in_batches(count: int, shape: Sequence[int], batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Standard normal noise (batch, *shape), `count` rows in all, the same whatever the batch."""
    rest = torch.empty(0, *shape)
    for start in range(0, count, NOISE_BLOCK):
        rest = torch.cat([rest, torch.randn(min(NOISE_BLOCK, count - start), *shape, generator=generator)])
        while len(rest) >= batch:
            yield rest[:batch]
            rest = rest[batch:]
    if len(rest):
        yield rest


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
    generator: torch.Generator | None = None,
    denoiser: DenoiserProtocol | None = None,
    conditions: Conditions | None = None,
) -> Tensor:
    """Images (N, C, H, W) on the CPU from noise (N, C, H, W), labels (N,), and the noise of stochastic methods.

    The noise is of a latent model's latents. `denoiser` stands in for the model's own, and `conditions`
    makes the condition of labels that are no classes.
    """
    device = next(model.denoiser.parameters()).device
    images, conditions = [], conditions or class_conditions(model.denoiser.network)
    with autocast(device, precision):
        for part, classes in zip(noise.split(batch), labels.split(batch), strict=True):
            condition_kwargs = conditions({"labels": classes.to(device)})
            made = sample(
                denoiser or model.denoiser,
                part.to(device),
                steps,
                method=method,
                clip=clip,
                generator=generator,
                **condition_kwargs,
            )
            images.append(made.float().cpu())
    return model.autoencoder.decode(torch.cat(images)) if model.autoencoder else torch.cat(images)
