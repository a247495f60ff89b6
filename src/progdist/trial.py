"""A model tried: images made with it in batches, and every reading of its output on data."""

import torch
from torch import Tensor

from progdist.batches import generator
from progdist.denoiser import Denoises
from progdist.images import Images
from progdist.model import Model
from progdist.network import condition
from progdist.precision import Precision, autocast
from progdist.reading import Reading, read
from progdist.sampler import Step, sample

EVALUATION_NOISE = 1_000_000
"""The stage number under which the noise of evaluation is drawn, apart from all training."""

READ_ON = 512
"""Images on which the readings of a teacher's output are tried."""


def try_readings(model: Model, images: Images, seed: int) -> Reading:
    """Every reading of a model's output, tried on up to READ_ON images."""
    device = next(model.denoiser.parameters()).device
    x, labels = images.sample(READ_ON, seed)
    x = model.autoencoder.encode(x) if model.autoencoder else x
    eps = torch.randn(x.shape, generator=generator(seed, EVALUATION_NOISE, 2))
    return read(model.denoiser, x.to(device), eps.to(device), **condition(model.denoiser.network, labels.to(device)))


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
    denoiser: Denoises | None = None,
) -> Tensor:
    """Images (N, C, H, W) on the CPU from noise (N, C, H, W), labels (N,), and the noise of stochastic methods.

    The noise is of a latent model's latents. `denoiser` stands in for the model's own.
    """
    device = next(model.denoiser.parameters()).device
    images = []
    with autocast(device, precision):
        for part, classes in zip(noise.split(batch), labels.split(batch), strict=True):
            given = condition(model.denoiser.network, classes.to(device))
            made = sample(
                denoiser or model.denoiser, part.to(device), steps, method=method, clip=clip, generator=draw, **given
            )
            images.append(made.float().cpu())
    return model.autoencoder.decode(torch.cat(images)) if model.autoencoder else torch.cat(images)
