"""Load, save and sample a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.diffusion import sampler
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.integrators import Step
from progdist.models.guidance import scales_of

if TYPE_CHECKING:  # diffusers takes seconds to import
    from progdist.models.autoencoder import Autoencoder


def load(folder: str | Path) -> Denoiser:
    """The denoiser of a model folder, in evaluation mode on the CPU; with its autoencoder, if it is a latent model.

    Raises:
        UserError: the folder is missing, no model folder, or damaged.
    """
    from progdist.models.model import LatentDenoiser
    from progdist.students.folder import load as load_model

    model = load_model(Path(folder))
    return LatentDenoiser(model.denoiser, model.autoencoder, model.text) if model.autoencoder else model.denoiser


def save(
    denoiser: Denoiser,
    folder: str | Path,
    *,
    steps: Sequence[int] = (),
    classes: Sequence[str] = (),
    null_class: int | None = None,
) -> None:
    """Write a model folder that stock diffusers loads, too.

    Args:
        denoiser: around a UNet2DModel or DiTTransformer2DModel, with its autoencoder if `load` gave it one.
        folder: must not exist.
        steps: the step counts it was distilled for; none for a model of any step count.
        classes: names of the classes, in the order of the labels; numbers if not given.
        null_class: the label that stands for no class, of a student that `distill` guided; it is not sampled.

    Raises:
        UserError: another network, a schedule or output of your own, names of other than the network's classes, a
            `null_class` that is no label, or the folder exists.
    """
    from progdist.models.model import Model
    from progdist.models.unet import class_count
    from progdist.students.folder import save as save_model

    count = class_count(denoiser.network)
    if classes and len(classes) != count:
        raise UserError(f"{len(classes)} names of classes were given, and the network has {count}: give one for each")
    names = tuple(classes) or tuple(map(str, range(count)))
    text = getattr(denoiser, "text", None)
    autoencoder = _autoencoder(denoiser)
    model = Model(denoiser, steps, classes=names, autoencoder=autoencoder, text=text, null_class=null_class)
    save_model(model, Path(folder))


def sample(
    denoiser: DenoiserProtocol,
    noise: Tensor,
    steps: int,
    *,
    method: str | Step = "ddim",
    clip: bool = False,
    generator: torch.Generator | None = None,
    prompt: str | Sequence[str] | None = None,
    guidance: float | None = None,
    **condition: Tensor,
) -> Tensor:
    """Data from noise in `steps` steps; of a latent model that `load` gave, its images.

    Args:
        denoiser: (z, t) -> xh.
        noise: z_1 ~ N(0, I), (B, ...); of a latent model's latents.
        steps: N, at least 1.
        method: one of `sampler.METHODS` or `sampler.MULTISTEP_METHODS`, or a step of your own.
        clip: keep every xh within [-1, 1], as the paper does; not for latents.
        generator: a CPU generator of the noise that stochastic methods add.
        prompt: of a text-conditional model that `load` gave: one for all images, or several for all in turn.
        guidance: the scale of a model that was distilled for a range of it; None for the usual one.
        condition: passed on to the denoiser, e.g. class_labels (B,) int64.

    Returns:
        (B, ...), pixels in about [-1, 1] for images.

    Raises:
        UserError: steps below 1, no such method, clipping of latents, or prompts and guidance of a model without them.
    """
    autoencoder = _autoencoder(denoiser)
    if autoencoder and clip:
        raise UserError("clip is of images, and a latent model samples latents: leave it out")
    if prompt is not None or (guidance is not None and getattr(denoiser, "text", None)):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        condition = {**condition, **_prompted(denoiser, prompts, guidance, noise)}
    elif guidance is not None:
        condition = {**condition, "guidance": scales_of(denoiser, guidance, len(noise))}
    data = sampler.sample(denoiser, noise, steps, method=method, clip=clip, generator=generator, **condition)
    return autoencoder.decode(data).to(noise.device) if autoencoder else data


def _prompted(
    denoiser: DenoiserProtocol, prompts: Sequence[str] | None, guidance: float | None, noise: Tensor
) -> dict[str, Tensor]:
    """What a text-conditional model is told of prompts, all in turn."""
    from progdist.models.conditions import prompt_conditions
    from progdist.models.model import LatentDenoiser, Model

    if not isinstance(denoiser, LatentDenoiser) or denoiser.text is None:
        raise UserError("prompt is of text-conditional models that progdist.load gave: leave it out")
    if not prompts:
        raise UserError('this model makes images of captions: say what to make, e.g. prompt="a cat"')
    model = Model(denoiser, autoencoder=denoiser.autoencoder, text=denoiser.text)
    numbers = torch.arange(len(noise), device=noise.device) % len(prompts)
    return prompt_conditions(model, prompts, guidance)({"labels": numbers})


def _autoencoder(denoiser: DenoiserProtocol) -> "Autoencoder | None":
    """That of a LatentDenoiser; None of any other."""
    return cast("Autoencoder | None", getattr(denoiser, "autoencoder", None))
