"""What a person imports beside the mathematics: load, save and sample a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.diffusion import sampler
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.sampler import Step

if TYPE_CHECKING:  # diffusers takes seconds to import
    from progdist.models.autoencoder import Autoencoder


def load(folder: str | Path) -> Denoiser:
    """The denoiser of a model folder, in evaluation mode on the CPU; with its autoencoder, if it is a latent model.

    Raises:
        UserError: the folder is missing, no model folder, or damaged.
    """
    from progdist.models.io.folder import load as load_model
    from progdist.models.model import latent_denoiser

    model = load_model(Path(folder))
    return latent_denoiser(model.denoiser, model.autoencoder) if model.autoencoder else model.denoiser


def save(denoiser: Denoiser, folder: str | Path, *, steps: Sequence[int] = (), classes: Sequence[str] = ()) -> None:
    """Write a model folder that stock diffusers loads, too.

    Args:
        denoiser: around a UNet2DModel or DiTTransformer2DModel, with its autoencoder if `load` gave it one.
        folder: must not exist.
        steps: the step counts it was distilled for; none for a model of any step count.
        classes: names of the classes, in the order of the labels; numbers if not given.

    Raises:
        UserError: another network, a schedule or output of your own, names of other than the network's classes, or the
            folder exists.
    """
    from progdist.models.io.folder import save as save_model
    from progdist.models.model import Model
    from progdist.models.unet import class_count

    count = class_count(denoiser.network)
    if classes and len(classes) != count:
        raise UserError(f"{len(classes)} names of classes were given, and the network has {count}: give one for each")
    names = tuple(classes) or tuple(map(str, range(count)))
    save_model(Model(denoiser, steps, classes=names, autoencoder=_autoencoder(denoiser)), Path(folder))


def sample(
    denoiser: DenoiserProtocol,
    noise: Tensor,
    steps: int,
    *,
    method: str | Step = "ddim",
    clip: bool = False,
    generator: torch.Generator | None = None,
    **condition: Tensor,
) -> Tensor:
    """Data from noise in `steps` steps; of a latent model that `load` gave, its images.

    Args:
        denoiser: (z, t) -> xh.
        noise: z_1 ~ N(0, I), (B, ...); of a latent model's latents.
        steps: N, at least 1.
        method: one of `progdist.sampler.METHODS`, or a step of your own.
        clip: keep every xh within [-1, 1], as the paper does; not for latents.
        generator: a CPU generator of the noise that stochastic methods add.
        condition: passed on to the denoiser, e.g. class_labels (B,) int64.

    Returns:
        (B, ...), pixels in about [-1, 1] for images.

    Raises:
        UserError: steps below 1, no such method, or clipping of latents.
    """
    autoencoder = _autoencoder(denoiser)
    if autoencoder and clip:
        raise UserError("clip is of images, and a latent model samples latents: leave it")
    data = sampler.sample(denoiser, noise, steps, method=method, clip=clip, generator=generator, **condition)
    return autoencoder.decode(data).to(noise.device) if autoencoder else data


def _autoencoder(denoiser: DenoiserProtocol) -> "Autoencoder | None":
    """That of a LatentDenoiser; None of any other."""
    return cast("Autoencoder | None", getattr(denoiser, "autoencoder", None))
