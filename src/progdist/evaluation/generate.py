"""Images from a model folder: what `progdist sample` does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist._utils.random import SAMPLING_NOISE, generator
from progdist.data.grid import write_grid
from progdist.diffusion.sampler import Step, ancestral
from progdist.evaluation.sampling import noise_in_batches, sample_in_batches
from progdist.models.io.folder import load
from progdist.models.model import Model
from progdist.models.text.conditions import prompt_conditions
from progdist.models.unet import Conditions, class_conditions

Notify = Callable[[str], None]


@dataclass(frozen=True)
class SamplingOptions:
    """What images to make.

    Args:
        steps: sampling steps; None for the model's own.
        count: how many.
        label: their class; None for all in turn.
        seed: of the noise.
        method: of sampling, one of `sampler.METHODS`.
        clip: keep every denoised image within [-1, 1].
        variance: of the ancestral sampler's variance, from 0, its lower bound, to 1, its upper.
        batch: how many at a time.
        precision: of the network.
        prompts: of a text-conditional model, all in turn.
        guidance: the scale of a text-conditional model with a dial; None for its pipeline's usual one.
    """

    steps: int | None
    count: int
    label: int | None
    seed: int
    method: str = "ddim"
    clip: bool = False
    variance: float = 1.0
    batch: int = 256
    precision: Precision = "float32"
    prompts: tuple[str, ...] = ()
    guidance: float | None = None

    def sampler(self) -> str | Step:
        """The method with its variance."""
        return partial(ancestral, gamma=self.variance) if self.method == "ancestral" else self.method


def sampling_noise(model: Model, count: int, seed: int) -> Tensor:
    """The noise that `progdist sample --seed` starts from: (count, C, H, W), of latents for a latent model."""
    return torch.randn(count, *model.shape, generator=generator(seed, SAMPLING_NOISE))


def generate_images(model: Model, options: SamplingOptions, notify: Notify) -> tuple[Tensor, Tensor, int]:
    """Images (N, C, H, W), their labels (N,), and the steps they took.

    Raises:
        UserError: a label out of range, no step count to be had, or an option that has no effect.
    """
    batches, steps = generate_batches(model, options, notify)
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels), steps


def generate_batches(
    model: Model, options: SamplingOptions, notify: Notify
) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
    """The images of `generate_images` and their labels, `options.batch` at a time, and the steps they take.

    Raises:
        UserError: as `generate_images`.
    """
    steps = _checked_steps(model, options, notify)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    size, labels, conditions = options.batch, _labels(model, options), _conditions(model, options, notify)
    draw = generator(options.seed, SAMPLING_NOISE, 1)
    sampler = options.sampler()
    sampled = partial(sample_in_batches, precision=options.precision, clip=options.clip, method=sampler, draw=draw)
    noise = noise_in_batches(options.count, model.shape, size, generator(options.seed, SAMPLING_NOISE))
    parts = zip(noise, labels.split(size), strict=True)
    sampled = partial(sampled, conditions=conditions)
    return ((sampled(model, z, classes, steps, size), classes) for z, classes in parts), steps


def _checked_steps(model: Model, options: SamplingOptions, notify: Notify) -> int:
    """The steps to take, once every option has been found to make sense."""
    if options.variance != 1 and options.method != "ancestral":
        raise UserError(f"--variance is of the method ancestral, and {options.method} adds no such noise: leave it")
    if options.clip and model.autoencoder:
        raise UserError("--clip is of images, and a latent model samples latents: leave it")
    steps = options.steps if options.steps is not None else min(model.steps, default=None)
    if steps is None:
        raise UserError("this model was trained for any number of steps: say how many with --steps, e.g. --steps 256")
    if model.steps and steps not in model.steps and steps > 0:
        notify(f"warning: the model was distilled for {_listed(model.steps)}, not {steps}: expect poor images")
    return steps


def _labels(model: Model, options: SamplingOptions) -> Tensor:
    """The number of the class, or of the prompt, of each image: (N,)."""
    kinds = len(options.prompts) if model.text else len(model.classes)
    if options.label is None:
        return torch.arange(options.count) % max(1, kinds)
    if options.label >= len(model.classes):
        expected = f"0 to {kinds - 1}" if model.classes else "none, since the model has no classes"
        raise UserError(f"label {options.label} is out of range: expected {expected}")
    return torch.full((options.count,), options.label)


def _conditions(model: Model, options: SamplingOptions, notify: Notify) -> Conditions:
    """What tells the network the class or the prompt of each image."""
    if model.text is None:
        if options.prompts or options.guidance is not None:
            raise UserError("--prompt and --guidance are of text-conditional models, and this is none: leave them")
        return class_conditions(model.denoiser.network)
    if not options.prompts:
        raise UserError('this model makes images of captions: say what to make with --prompt "..."')
    taken, asked = model.text.guidance, options.guidance
    if isinstance(taken, tuple) and asked is not None and not taken[0] <= asked <= taken[1]:
        notify(f"warning: the model was distilled for guidance of {taken[0]:g} to {taken[1]:g}, not {asked:g}")
    return prompt_conditions(model, options.prompts, asked)


def write_samples(folder: Path, options: SamplingOptions, out: Path, columns: int, notify: Notify) -> None:
    """Make images and write them as a PNG grid, or as the array `images` (N, C, H, W) in [-1, 1] of an npz file.

    Raises:
        UserError: another kind of file was asked for, or as in `generate_images`.
    """
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out {out} ends in {out.suffix or 'nothing'}: give a name that ends in .png or .npz")
    images, labels, steps = generate_images(load(folder), options, notify)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        write_grid(images, out, columns)
    else:
        np.savez(out, images=images.numpy(), labels=labels.numpy())
    notify(f"{len(images)} images in {steps} step{'s' if steps > 1 else ''}: {out}")


def _listed(counts: Sequence[int]) -> str:
    words = [str(count) for count in counts]
    return f"{' or '.join(words)} step{'s' if list(counts) != [1] else ''}"
