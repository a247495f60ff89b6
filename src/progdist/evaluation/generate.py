"""Images from a model folder, and their distance to data: what `progdist sample` and `evaluate` do."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.precision import Precision
from progdist._utils.random import SAMPLING_NOISE, generator
from progdist.data.grid import write_grid
from progdist.data.images import Images, ImageTransform
from progdist.data.sources import load_images
from progdist.diffusion.sampler import Step, ancestral, network_evaluations
from progdist.evaluation.features import feature_space
from progdist.evaluation.metrics import quality, root_mean_square
from progdist.evaluation.sampling import sample_in_batches
from progdist.models.io.folder import load
from progdist.models.model import Model

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
        level: of the ancestral sampler's variance, from 0, its lower bound, to 1, its upper.
        batch: how many at a time.
        precision: of the network.
    """

    steps: int | None
    count: int
    label: int | None
    seed: int
    method: str = "ddim"
    clip: bool = False
    level: float = 1.0
    batch: int = 256
    precision: Precision = "float32"

    def how(self) -> str | Step:
        """The method with its variance."""
        return partial(ancestral, gamma=self.level) if self.method == "ancestral" else self.method


def sampling_noise(model: Model, count: int, seed: int) -> Tensor:
    """The noise that `progdist sample --seed` starts from: (count, C, H, W), of latents for a latent model."""
    return torch.randn(count, *model.shape, generator=generator(seed, SAMPLING_NOISE))


def make(model: Model, options: SamplingOptions, notify: Notify) -> tuple[Tensor, Tensor, int]:
    """Images (N, C, H, W), their labels (N,), and the steps they took.

    Raises:
        UserError: a label out of range, no step count to be had, or an option that has no effect.
    """
    if options.level != 1 and options.method != "ancestral":
        raise UserError(f"--variance is of the method ancestral, and {options.method} adds no such noise: leave it")
    if options.clip and model.autoencoder:
        raise UserError("--clip is of images, and a latent model samples latents: leave it")
    steps = options.steps if options.steps is not None else min(model.steps, default=None)
    if steps is None:
        raise UserError("this model was trained for any number of steps: say how many with --steps, e.g. --steps 256")
    if model.steps and steps not in model.steps and steps > 0:
        notify(f"warning: the model was distilled for {_listed(model.steps)}, not {steps}: expect poor images")
    classes = len(model.classes)
    if options.label is not None and options.label >= classes:
        expected = f"0 to {classes - 1}" if classes else "none, since the model has no classes"
        raise UserError(f"label {options.label} is out of range: expected {expected}")
    labels = (
        torch.arange(options.count) % max(1, classes)
        if options.label is None
        else torch.full((options.count,), options.label)
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    noise, draw = sampling_noise(model, options.count, options.seed), generator(options.seed, SAMPLING_NOISE, 1)
    images = sample_in_batches(
        model,
        noise,
        labels,
        steps,
        options.batch,
        precision=options.precision,
        clip=options.clip,
        method=options.how(),
        draw=draw,
    )
    return images, labels, steps


def write_samples(folder: Path, options: SamplingOptions, out: Path, columns: int, notify: Notify) -> None:
    """Make images and write them as a PNG grid, or as the array `images` (N, C, H, W) in [-1, 1] of an npz file.

    Raises:
        UserError: another kind of file was asked for, or as in `make`.
    """
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out {out} ends in {out.suffix or 'nothing'}: give a name that ends in .png or .npz")
    images, labels, steps = make(load(folder), options, notify)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        write_grid(images, out, columns)
    else:
        np.savez(out, images=images.numpy(), labels=labels.numpy())
    notify(f"{len(images)} images in {steps} step{'s' if steps > 1 else ''}: {out}")


@dataclass(frozen=True)
class Reference:
    """A teacher's folder and the steps it takes, for fidelity."""

    folder: Path
    steps: int


def compare(
    folders: Sequence[Path],
    source: str,
    options: SamplingOptions,
    features: str,
    reference: Reference | None,
    notify: Notify,
) -> Iterator[dict[str, Any]]:
    """The quality of each model's samples against the data, and their RMSE to a teacher's from the same noise.

    Raises:
        UserError: images of another size than the model's, or as in `make` and `load_images`.
    """
    taught = make(load(reference.folder), replace(options, steps=reference.steps), notify)[0] if reference else None
    for folder in folders:
        model = load(folder)
        images = images_for_model(model, source, notify)
        space = feature_space(features, images.shape)
        pixels, _ = images.sample(max(options.count, 10_000), options.seed)
        started = time.perf_counter()
        made, labels, steps = make(model, options, notify)
        seconds = (time.perf_counter() - started) / len(made)
        if taught is not None and taught.shape != made.shape:
            raise UserError(f"the teacher makes images of {tuple(taught.shape[1:])}, {folder} {tuple(made.shape[1:])}")
        result = quality(space, space(pixels), made, labels if model.classes else None)
        if result.warning:
            notify(f"warning: {result.warning}")
        yield {
            "model": str(folder),
            "steps": steps,
            "network_evaluations": network_evaluations(steps, options.method),
            "seconds_per_image": seconds,
            "rmse": None if taught is None else root_mean_square(made, taught),
            **asdict(result),
        }


def images_for_model(model: Model, source: str, notify: Notify) -> Images:
    """The data, brought to the size and channels that the model makes.

    Raises:
        UserError: they cannot be.
    """
    images, shape = load_images(source), model.image
    if images.shape != shape and shape[1] == shape[2]:
        notify(f"{source} is brought to the model's {shape[1]}x{shape[2]}")
        images = load_images(source, ImageTransform(shape[1], 3 if shape[0] == 3 else 1))
    if images.shape != shape:
        raise UserError(f"{source} holds images of {images.shape}, the model makes {shape} (channels, height, width)")
    return images


def _listed(counts: Sequence[int]) -> str:
    words = [str(count) for count in counts]
    return f"{' or '.join(words)} step{'s' if list(counts) != [1] else ''}"
