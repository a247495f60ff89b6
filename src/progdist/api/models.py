"""Load, save, sample and check a model from Python. `progdist` exports these functions."""

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
EXPLODED = 10.0  # standard deviation above which samples, expected in about [-1, 1], have diverged
Data = Any  # examples in any form that `progdist.data.examples` reads

if TYPE_CHECKING:  # diffusers takes seconds to import
    from progdist.models.model import Model
    from progdist.teachers.check import TeacherCheck


def load(folder: str | Path, network: nn.Module | None = None, **parts: Any) -> Denoiser:  # noqa: ANN401
    """Load the denoiser of a model folder, in evaluation mode on the CPU, with the autoencoder of a latent model.

        student = progdist.load("student")                  # around a network of diffusers'
        student = progdist.load("student", MyNetwork(64))   # around a custom network

    Args:
        folder: a folder written by `save` or a run; or a teacher's diffusers folder, or hub:OWNER/NAME.
        network: a custom network of the class and size that was saved; its weights are replaced.
        parts: custom arguments of `Denoiser`: schedule, prediction_type, arguments or call.

    Returns:
        The denoiser, with `history`: the step counts it was distilled for, its lineage, and how it was trained.

    Raises:
        UserError: the folder is missing, damaged or not a model folder; the network does not fit it, or is required
            and missing.
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
            raise UserError(f"{what} has no effect on {folder}, a diffusers pipeline with its own network: remove it")
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
    """Write a model folder that stock diffusers loads, too, or the weights of a custom network.

    Args:
        denoiser: around a UNet2DModel or DiTTransformer2DModel, with its autoencoder if `load` gave it one; or around
            a custom network, whose state_dict is written with schedule, prediction type and timesteps. `load`
            reads it into a network of the same class.
        folder: must not exist.
        steps: the step counts it was distilled for; by default those recorded by `distill` or `load`, or none for a
            model of any step count.
        classes: names of the classes, in the order of the labels; by default those that `load` found, or numbers.
        null_class: label of the null class of a guided student, which is not sampled. By default the one that `load`
            found.

    A warning names the step counts at which stock samplers visit other times than `progdist.sample`: those that do not
    divide `num_train_timesteps`.

    Raises:
        UserError: a subclass of Denoiser; a custom schedule or output around a diffusers network; a wrong number of
            class names; a `null_class` that is not a label; or the folder exists.
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
    """Sample data from noise in `steps` steps; a latent model opened by `load` returns images.

    Args:
        denoiser: (z, t) -> xh.
        noise: eps ~ N(0, I), (B, ...), in the shape of a latent model's latents; sampling starts from sigma_1 eps.
        steps: N, at least 1.
        method: one of `sampler.SAMPLERS` or `sampler.MULTISTEP_SAMPLERS`, or a custom step.
        clip: keep every xh within [-1, 1], as the paper does; not for latents.
        generator: a CPU generator of the noise that stochastic methods add.
        condition: keyword arguments of the network: a tensor or array (B, ...) of any type, or a number or one row for
            all, e.g. class_labels (B,) int64; `guidance`, one scale for all, for a model with a guidance input; and
            `prompt`, one for all images or several in turn, for a text-to-image model opened by `load`.

    Returns:
        (B, ...), pixels in about [-1, 1] for images.

    Raises:
        UserError: not a denoiser, noise that the network does not take, steps below 1, an unknown method, clipping of
            latents, a condition with other rows than the noise, or a prompt or guidance that the model does not take.
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
    """Raise a UserError unless `noise` is a float tensor (B, ...)."""
    if not isinstance(noise, Tensor):
        raise UserError(f"noise is a {type(noise).__name__}, expected a tensor (B, ...): torch.randn(...)")
    if not noise.is_floating_point() or noise.ndim < 2:
        raise UserError(f"noise is {tuple(noise.shape)} of {noise.dtype}, expected floats (B, ...): torch.randn(...)")


@contextmanager
def taken(what: str, tensor: Tensor, condition: Mapping[str, Tensor]) -> Iterator[None]:
    """The context of a network call; raises a UserError if the network does not take a shape, a type or a label."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())[:150]
        given = ", ".join(f"{name} {tuple(each.shape)} of {each.dtype}" for name, each in condition.items())
        remedy = f"use {what} in the shape of its data and the type of its weights"
        if condition:
            remedy += f", and {', '.join(condition)[:100]} as it takes {'them' if len(condition) > 1 else 'it'}"
        if isinstance(error, IndexError) or "indices" in reason:
            remedy += "; labels as whole numbers (int64) from 0, below its number of classes"
        beside = f" with {given[:200]}" if given else ""
        raise UserError(
            f"the network does not take {what} {tuple(tensor.shape)} of {tensor.dtype} ({reason}){beside}: {remedy}"
        ) from error


def _in_rows(condition: dict[str, Any], noise: Tensor) -> dict[str, Tensor]:
    """Expand each condition to a row per example; a number or a single row applies to all."""
    from progdist.training.batches import as_condition, whole_as_int64

    rows = {}
    for name, value in condition.items():
        tensor = value if isinstance(value, Tensor) else whole_as_int64(as_condition(name, value)).to(noise.device)
        if not isinstance(value, Tensor) and tensor.is_floating_point():
            tensor = tensor.to(noise.dtype)
        if tensor.ndim == 0 or (len(tensor) == 1 and len(noise) > 1):
            tensor = tensor.expand(len(noise), *tensor.shape[1:])
        if len(tensor) != len(noise):
            raise UserError(f"condition {name!r} has {len(tensor)} rows, expected {len(noise)}, one per row of noise")
        rows[name] = tensor
    return rows


def _warn_of_explosion(denoiser: DenoiserProtocol, data: Tensor) -> None:
    """Warn if the samples diverged because eps was divided by a tiny alpha."""
    from progdist.methods.guidance import unclipped_warning

    if isinstance(denoiser, Denoiser) and float(data.std()) > EXPLODED and (warning := unclipped_warning(denoiser)):
        LOG.warning(f"the samples have a standard deviation of {float(data.std()):.3g}: {warning}")


def _prepared(denoiser: DenoiserProtocol, noise: Tensor, condition: dict[str, Any]) -> dict[str, Tensor]:
    prompt, guidance = condition.pop("prompt", None), condition.pop("guidance", None)
    conditioning = getattr(denoiser, "conditioning", None)
    if conditioning is not None and conditioning.takes_prompts and (prompt is not None or guidance is not None):
        if prompt is None or (len(prompt) == 0 and not isinstance(prompt, str)):
            raise UserError('this model requires prompt, e.g. prompt="a cat"')
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        numbers = torch.arange(len(noise), device=noise.device) % len(prompts)
        conditions = _model(denoiser, (), None).conditions(guidance, prompts)
        return {**condition, **conditions({"labels": numbers})}
    if prompt is not None:
        raise UserError("prompt applies only to text-to-image models opened by progdist.load: remove it")
    if isinstance(guidance, Real):
        from progdist.models.networks import has_guidance_keyword, takes_guidance

        network = denoiser.network if isinstance(denoiser, Denoiser) else None
        if network is None or not (takes_guidance(network) or has_guidance_keyword(network)):
            raise UserError("guidance applies only to models distilled for a guidance range: remove it")
        guidance = torch.full((len(noise),), float(guidance), dtype=torch.float64)
    return condition if guidance is None else {**condition, "guidance": guidance}


def check(
    teacher: "Denoiser | str | Path", data: "str | Path | Data", *, label: str | None = None, seed: int = 0
) -> "TeacherCheck":
    """Test a teacher's predictions and timesteps on data, as `progdist doctor` does.

        found = progdist.check("my-model", "folder:my-images")
        found.problem                   # None, or what is wrong and what to do

    Args:
        teacher: a folder, a hub name, a model opened by `load`, or a denoiser around a custom network.
        data: a source of images, e.g. folder:PATH, in the teacher's shape (C, H, W) or brought to it; or examples in
            any form that `distill` takes, e.g. floats (N, ...) in about [-1, 1]. Up to 512 are used.
        label: as in `distill`, for examples.
        seed: seed of the noise and the choice of examples.

    Returns:
        `errors`, the mean squared error of the denoised data by prediction type; `shifts`, that of the output at low
        noise by shift of the timesteps, -2 to 2; and `problem`, a sentence, or None if the data agree with the
        teacher's configuration.

    Raises:
        UserError: not a teacher's folder, or data that do not suit the teacher.
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
        raise UserError("label applies only to examples and custom networks: remove it")
    model = _model(teacher, (), None) if isinstance(teacher, Denoiser) else open_teacher(str(teacher)).model
    remedies = CALL if isinstance(teacher, Denoiser) else (FOLDER[0], CALL[1])
    return check_on_images(model, images_for_model(model, images, lambda text: None), seed, remedies)


def _model(denoiser: DenoiserProtocol, classes: Sequence[str], null_class: int | None) -> "Model":
    """A denoiser as a model, with the autoencoder and prompts that `load` attached."""
    from dataclasses import replace

    from progdist.models.conditioning import Classes
    from progdist.models.model import Model, conditioning_of
    from progdist.models.networks import class_count

    check_denoiser(denoiser, own=True)
    assert isinstance(denoiser, Denoiser)
    count = class_count(denoiser.network)
    if classes and len(classes) != count:
        raise UserError(f"got {len(classes)} class names, expected {count}: name each class of the network")
    conditioning = conditioning_of(denoiser)
    if isinstance(conditioning, Classes):
        null = conditioning.null_class if null_class is None else null_class
        conditioning = replace(conditioning, names=tuple(classes) or conditioning.names, null_class=null)
    elif null_class is not None:
        raise UserError("null_class applies only to a network with classes: remove it")
    autoencoder = getattr(denoiser, "autoencoder", None)
    return Model(denoiser, conditioning=conditioning, autoencoder=autoencoder, **denoiser.history)
