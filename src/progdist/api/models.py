"""From Python: load, save, sample and check a model. `progdist` hands these on."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist.diffusion import sampler
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol, check_denoiser
from progdist.diffusion.integrators import Step

LOG = logging.getLogger("progdist")
EXPLODED = 10.0  # the standard deviation beyond which samples of data of about [-1, 1] are none
Data = Any  # examples in any form that `progdist.data.examples` reads

if TYPE_CHECKING:  # diffusers takes seconds to import
    from progdist.models.model import Model
    from progdist.teachers.check import TeacherCheck


def load(folder: str | Path, network: nn.Module | None = None, **parts: Any) -> Denoiser:  # noqa: ANN401
    """The denoiser of a model folder, in evaluation mode on the CPU; with its autoencoder, if it is a latent model.

        student = progdist.load("student")                  # around a network of diffusers'
        student = progdist.load("student", MyNetwork(64))   # around one of your own

    Args:
        folder: that `save` or a run wrote; or a diffusers pipeline's folder, or hub:OWNER/NAME, of a teacher.
        network: one of the class and size that was saved, where it is one of your own; its weights are replaced.
        parts: arguments of `Denoiser` that were code of your own: schedule, prediction_type, arguments or call.

    Returns:
        The denoiser, with `history`: the step counts it was distilled for, its lineage, and how it was trained.

    Raises:
        UserError: the folder is missing, no model folder, or damaged; a network that does not fit it, or that it needs
            and is not given.
    """
    from progdist.models.model import LatentDenoiser
    from progdist.models.networks import kind_of
    from progdist.teachers.open import open_teacher
    from progdist.teachers.own import load as load_model

    if not isinstance(folder, str | Path):
        raise UserError(f"folder is a {type(folder).__name__}, expected the path of a model folder")
    path, stock = local_path(folder), str(folder).startswith("hub:")
    if stock or ((path / "model_index.json").is_file() and not (path / "progdist.json").is_file()):
        if network is not None or parts:
            what = "network" if network is not None else min(parts)
            raise UserError(f"{what} has no effect: {folder} is a diffusers pipeline, whose network is its own")
        model = open_teacher(str(folder)).model
    else:
        model = load_model(path, network, **parts)
    denoiser = model.denoiser
    if model.autoencoder:
        denoiser = LatentDenoiser(denoiser, model.autoencoder, model.conditioning)
    elif kind_of(denoiser.network):
        denoiser.conditioning = model.conditioning  # pyright: ignore[reportArgumentType]
    denoiser.history = model.history
    return denoiser.eval()


def save(
    denoiser: Denoiser,
    folder: str | Path,
    *,
    steps: Sequence[int] = (),
    classes: Sequence[str] = (),
    null_class: int | None = None,
) -> None:
    """Write a model folder: one that stock diffusers loads, too, or the weights of a network of your own.

    Args:
        denoiser: around a UNet2DModel or DiTTransformer2DModel, with its autoencoder if `load` gave it one; or around
            a network of your own, whose state_dict is written with schedule, prediction type and timesteps. `load`
            reads it into a network of the same class.
        folder: must not exist.
        steps: the step counts it was distilled for; by default those that `distill` or `load` know of it, or none for
            a model of any step count.
        classes: names of the classes, in the order of the labels; by default those that `load` found, or numbers.
        null_class: the label that stands for no class, of a student that `distill` guided; it is not sampled. By
            default the one that `load` found.

    A warning names the step counts at which stock samplers visit other times than `progdist.sample`: those that do not
    divide `num_train_timesteps`.

    Raises:
        UserError: a subclass of Denoiser, a schedule or output of your own around a network of diffusers', names of
            other than the network's classes, a `null_class` that is no label, or the folder exists.
    """
    from dataclasses import replace

    from progdist.models.networks import kind_of
    from progdist.students.folder import off_grid
    from progdist.students.folder import save as save_model

    model = _model(denoiser, classes, null_class)
    model = replace(model, steps=tuple(steps)) if steps else model
    save_model(model, local_path(folder))
    if kind_of(denoiser.network) and (remark := off_grid(model)):
        warnings.warn(f"{folder}: {remark}", stacklevel=2)


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
        noise: eps ~ N(0, I), (B, ...), of a latent model's latents; sampling begins with it times sigma_1.
        steps: N, at least 1.
        method: one of `sampler.SAMPLERS` or `sampler.MULTISTEP_SAMPLERS`, or a step of your own.
        clip: keep every xh within [-1, 1], as the paper does; not for latents.
        generator: a CPU generator of the noise that stochastic methods add.
        condition: passed on to the network by name, a tensor or array (B, ...) of any type, or a number or one row for
            all, e.g. class_labels (B,) int64; `guidance`, one scale for all, of a model that takes a range of it; and
            of a text-to-image model that `load` gave `prompt`, one for all images, or several in turn.

    Returns:
        (B, ...), pixels in about [-1, 1] for images.

    Raises:
        UserError: no denoiser, noise that the network does not take, steps below 1, no such method, clipping of
            latents, a condition of other rows than the noise, or a prompt or guidance of a model without them.
    """
    check_denoiser(denoiser)
    _check_noise(noise)
    autoencoder = getattr(denoiser, "autoencoder", None)
    if autoencoder and clip:
        raise UserError("clip applies only to images, and a latent model samples latents: remove it")
    condition = _in_rows(_prepared(denoiser, noise, condition), noise)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UserError(f"generator is a {type(generator).__name__}, expected a torch.Generator")
    with taken("noise", noise, condition):
        data = sampler.sample(denoiser, noise, steps, method=method, clip=clip, generator=generator, **condition)
    if not clip and not autoencoder:
        _warn_of_explosion(denoiser, data)
    return autoencoder.decode(data).to(noise.device) if autoencoder else data


def _check_noise(noise: object) -> None:
    """Raise a UserError for what is no noise (B, ...)."""
    if not isinstance(noise, Tensor):
        raise UserError(f"noise is a {type(noise).__name__}, expected a tensor (B, ...): torch.randn(...)")
    if not noise.is_floating_point() or noise.ndim < 2:
        raise UserError(f"noise is {tuple(noise.shape)} of {noise.dtype}, expected floats (B, ...): torch.randn(...)")


@contextmanager
def taken(what: str, tensor: Tensor, condition: Mapping[str, Tensor]) -> Iterator[None]:
    """The context in which a network is asked: a UserError where it does not take a shape, a type or a label."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())[:150]
        told = ", ".join(f"{name} {tuple(each.shape)} of {each.dtype}" for name, each in condition.items())
        remedy = f"give {what} of the shape of its data and the type of its weights"
        if condition:
            remedy += f", and {', '.join(condition)[:100]} as it takes {'them' if len(condition) > 1 else 'it'}"
        if isinstance(error, IndexError) or "indices" in reason:
            remedy += "; labels as whole numbers (int64) from 0, below its number of classes"
        beside = f" with {told[:200]}" if told else ""
        raise UserError(
            f"the network does not take {what} {tuple(tensor.shape)} of {tensor.dtype} ({reason}){beside}: {remedy}"
        ) from error


def _in_rows(condition: dict[str, Any], noise: Tensor) -> dict[str, Tensor]:
    """Each condition with a row for each example; a number or a single row is that of all."""
    from progdist.training.batches import as_condition, whole_as_int64

    rows = {}
    for name, value in condition.items():
        tensor = value if isinstance(value, Tensor) else whole_as_int64(as_condition(name, value)).to(noise.device)
        if not isinstance(value, Tensor) and tensor.is_floating_point():
            tensor = tensor.to(noise.dtype)
        if tensor.ndim == 0 or (len(tensor) == 1 and len(noise) > 1):
            tensor = tensor.expand(len(noise), *tensor.shape[1:])
        if len(tensor) != len(noise):
            raise UserError(f"condition {name!r} has {len(tensor)} rows, and the noise {len(noise)}: give one for each")
        rows[name] = tensor
    return rows


def _warn_of_explosion(denoiser: DenoiserProtocol, data: Tensor) -> None:
    """Say where an eps that is divided by a tiny alpha shows in the samples."""
    from progdist.methods.guidance import unclipped_warning

    if isinstance(denoiser, Denoiser) and float(data.std()) > EXPLODED and (warning := unclipped_warning(denoiser)):
        LOG.warning(f"the samples have a standard deviation of {float(data.std()):.3g}: {warning}")


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


def check(
    teacher: "Denoiser | str | Path", data: "str | Path | Data", *, label: str | None = None, seed: int = 0
) -> "TeacherCheck":
    """Try what a teacher predicts, and its timesteps, on data: what `progdist doctor` reports.

        found = progdist.check("my-model", "folder:my-images")
        found.problem                   # None, or what is wrong and what to do

    Args:
        teacher: a folder or hub name, what `load` gave, or a denoiser around a network of your own.
        data: a source of images, e.g. folder:PATH, in the teacher's shape (C, H, W) or brought to it; or examples in
            any form that `distill` takes, e.g. floats (N, ...) in about [-1, 1]. Up to 512 are tried.
        label: as of `distill`, for examples.
        seed: of the noise and the choice of examples.

    Returns:
        `errors`, the mean squared error of the denoised data by prediction type; `shifts`, the same by shift of the
        timesteps, -2 to 2; and `problem`, a sentence, or None where the teacher is what it says.

    Raises:
        UserError: a folder that is no teacher's, or teacher and data that do not suit each other.
    """
    from progdist.data.examples import ExampleData
    from progdist.data.sources import load_images
    from progdist.evaluation.evaluate import images_for_model
    from progdist.models.networks import kind_of
    from progdist.teachers.check import CALL, FOLDER, check_on_examples, check_on_images
    from progdist.teachers.open import open_teacher

    if not isinstance(teacher, str | Path):
        check_denoiser(teacher, own=True)
    images = load_images(str(data)) if isinstance(data, str | Path) else None
    if images is None or (isinstance(teacher, Denoiser) and not kind_of(teacher.network)):
        denoiser = teacher if isinstance(teacher, Denoiser) else load(teacher)
        examples = ExampleData(images or data, label, LOG.warning)
        x, condition = examples[0]
        with taken("data", x, condition):
            return check_on_examples(denoiser, examples, seed)
    if label is not None:
        raise UserError("label applies only to examples and to networks of your own: remove it")
    model = _model(teacher, (), None) if isinstance(teacher, Denoiser) else open_teacher(str(teacher)).model
    remedies = CALL if isinstance(teacher, Denoiser) else (FOLDER[0], CALL[1])
    return check_on_images(model, images_for_model(model, images, lambda text: None), seed, remedies)


def _model(denoiser: DenoiserProtocol, classes: Sequence[str], null_class: int | None) -> "Model":
    """A denoiser as a model, with its autoencoder and its prompts, if `load` gave it any."""
    from dataclasses import replace

    from progdist.models.conditioning import Classes
    from progdist.models.model import Model, conditioning_of
    from progdist.models.networks import class_count

    check_denoiser(denoiser, own=True)
    assert isinstance(denoiser, Denoiser)
    count = class_count(denoiser.network)
    if classes and len(classes) != count:
        raise UserError(f"{len(classes)} class names were given, and the network has {count} classes: name each")
    conditioning = conditioning_of(denoiser)
    if isinstance(conditioning, Classes):
        null = conditioning.null_class if null_class is None else null_class
        conditioning = replace(conditioning, names=tuple(classes) or conditioning.names, null_class=null)
    elif null_class is not None:
        raise UserError("null_class applies only to a network with classes: remove it")
    autoencoder = getattr(denoiser, "autoencoder", None)
    return Model(denoiser, conditioning=conditioning, autoencoder=autoencoder, **denoiser.history)
