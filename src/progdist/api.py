"""From Python: load, save, sample and check a model. `progdist` hands these on."""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.diffusion import sampler
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.integrators import Step

if TYPE_CHECKING:  # diffusers takes seconds to import
    from progdist.models.model import Model
    from progdist.teachers.check import TeacherCheck


def load(folder: str | Path) -> Denoiser:
    """The denoiser of a model folder, in evaluation mode on the CPU; with its autoencoder, if it is a latent model.

    Raises:
        UserError: the folder is missing, no model folder, or damaged.
    """
    from progdist.models.model import LatentDenoiser
    from progdist.teachers.own import load as load_model

    model = load_model(Path(folder))
    return (
        LatentDenoiser(model.denoiser, model.autoencoder, model.conditioning) if model.autoencoder else model.denoiser
    )


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
        classes: names of the classes, in the order of the labels; numbers by default.
        null_class: the label that stands for no class, of a student that `distill` guided; it is not sampled.

    Raises:
        UserError: another network, a schedule or output of your own, names of other than the network's classes, a
            `null_class` that is no label, or the folder exists.
    """
    from dataclasses import replace

    from progdist.students.folder import save as save_model

    save_model(replace(_model(denoiser, classes, null_class), steps=tuple(steps)), Path(folder))


def sample(
    denoiser: DenoiserProtocol,
    noise: Tensor,
    steps: int,
    *,
    method: str | Step = "ddim",
    clip: bool = False,
    generator: torch.Generator | None = None,
    **condition: Any,  # noqa: ANN401
) -> Tensor:
    """Data from noise in `steps` steps; of a latent model that `load` gave, its images.

    Args:
        denoiser: (z, t) -> xh.
        noise: z_1 ~ N(0, I), (B, ...); of a latent model's latents.
        steps: N, at least 1.
        method: one of `sampler.SAMPLERS` or `sampler.MULTISTEP_SAMPLERS`, or a step of your own.
        clip: keep every xh within [-1, 1], as the paper does; not for latents.
        generator: a CPU generator of the noise that stochastic methods add.
        condition: passed on to the network, e.g. class_labels (B,) int64; `guidance`, one scale for all, of a model
            that takes a range of it; and of a text-to-image model that `load` gave `prompt`, one for all images, or
            several in turn.

    Returns:
        (B, ...), pixels in about [-1, 1] for images.

    Raises:
        UserError: steps below 1, no such method, clipping of latents, or a prompt or guidance of a model without them.
    """
    autoencoder = getattr(denoiser, "autoencoder", None)
    if autoencoder and clip:
        raise UserError("clip applies only to images, and a latent model samples latents: remove it")
    condition = _prepared(denoiser, noise, condition)
    data = sampler.sample(denoiser, noise, steps, method=method, clip=clip, generator=generator, **condition)
    return autoencoder.decode(data).to(noise.device) if autoencoder else data


def _prepared(denoiser: DenoiserProtocol, noise: Tensor, condition: dict[str, Any]) -> dict[str, Tensor]:
    prompt, guidance = condition.pop("prompt", None), condition.pop("guidance", None)
    conditioning = getattr(denoiser, "conditioning", None)
    if conditioning is not None and conditioning.takes_prompts and (prompt is not None or guidance is not None):
        if prompt is None or (len(prompt) == 0 and not isinstance(prompt, str)):
            raise UserError('this model makes images of prompts: give one, e.g. prompt="a cat"')
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        numbers = torch.arange(len(noise), device=noise.device) % len(prompts)
        conditions = _model(denoiser, (), None).conditions(guidance, prompts)
        return {**condition, **conditions({"labels": numbers})}
    if prompt is not None:
        raise UserError("prompt applies only to text-to-image models that progdist.load gave: remove it")
    if isinstance(guidance, Real):
        from progdist.models.networks import has_guidance_keyword, takes_guidance

        network = denoiser.network if isinstance(denoiser, Denoiser) else None
        if network is None or not (takes_guidance(network) or has_guidance_keyword(network)):
            raise UserError("guidance applies only to models that were distilled for a range of it: remove it")
        guidance = torch.full((len(noise),), float(guidance), dtype=torch.float64)
    return condition if guidance is None else {**condition, "guidance": guidance}


def check(teacher: "Denoiser | str", data: str, *, seed: int = 0) -> "TeacherCheck":
    """Try what a teacher predicts, and its timesteps, on data: what `progdist doctor` reports.

    Args:
        teacher: a folder or hub name, or what `load` gave.
        data: a source of images, e.g. folder:PATH, in the teacher's shape or brought to it.
        seed: of the noise and the choice of images.

    Returns:
        The errors of each reading, and the problem, or None; a UserError where teacher and data do not suit each other.
    """
    from progdist.data.sources import load_images
    from progdist.evaluation.evaluate import images_for_model
    from progdist.teachers.check import check_on_images
    from progdist.teachers.open import open_teacher

    model = open_teacher(teacher).model if isinstance(teacher, str) else _model(teacher, (), None)
    return check_on_images(model, images_for_model(model, load_images(data), lambda text: None), seed)


def _model(denoiser: DenoiserProtocol, classes: Sequence[str], null_class: int | None) -> "Model":
    """A denoiser as a model, with its autoencoder and its prompts, if `load` gave it any."""
    from progdist.models.conditioning import Classes, Conditioning
    from progdist.models.model import Model
    from progdist.models.networks import class_count

    assert isinstance(denoiser, Denoiser)
    count = class_count(denoiser.network)
    if classes and len(classes) != count:
        raise UserError(f"{len(classes)} class names were given, and the network has {count} classes: name each")
    conditioning = getattr(denoiser, "conditioning", Conditioning())
    if count:
        conditioning = Classes(tuple(classes) or conditioning.classes or tuple(map(str, range(count))), null_class)
    return Model(denoiser, conditioning=conditioning, autoencoder=getattr(denoiser, "autoencoder", None))
