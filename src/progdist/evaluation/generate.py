"""Images from a model, in batches: what `progdist sample` writes, and what every evaluation measures."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import get_args

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist._utils.random import SAMPLING_NOISE, RowGenerator, generator
from progdist._utils.words import any_of, counted
from progdist.compute.precision import autocast
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.integrators import Step
from progdist.diffusion.sampler import ancestral, sample
from progdist.methods import METHODS
from progdist.methods.guidance import Input
from progdist.models.conditioning import Conditions
from progdist.models.model import Model

Notify = Callable[[str], None]

NOISE_BLOCK = 16  # examples drawn at a time: torch draws blocks of 16 numbers, so this equals a single draw


@dataclass(frozen=True)
class SamplingOptions:
    """Which images to make.

    Args:
        steps: sampling steps; None for the model's own.
        count: how many images.
        label: their class, by number or name; None for all, in the data's proportions.
        seed: seed of the noise.
        method: a name in `sampler.SAMPLERS` or `sampler.MULTISTEP_SAMPLERS`, or your own step.
        clip: clip every denoised image to [-1, 1].
        variance: the ancestral sampler's, from 0, its lower bound, to 1, its upper.
        batch: how many at a time.
        precision: the network's precision.
        prompts: prompts for a text-to-image model, all in turn.
        guidance: scale for a model that was distilled for a range; None for its default.
        shares: how many images per class the data hold; empty for those recorded by the model, or all classes in turn
            if it recorded none.
    """

    steps: int | None = None
    count: int = 2048
    label: int | str | None = None
    seed: int = 0
    method: str | Step = "ddim"
    clip: bool = False
    variance: float = 1.0
    batch: int = 256
    precision: Precision = "float32"
    prompts: tuple[str, ...] = ()
    guidance: float | None = None
    shares: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            names = ", ".join(get_args(Precision))
            raise UserError(f"precision is {str(self.precision)[:50]!r}, expected one of {names}")
        for name in ("count", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise UserError(f"{name} is {str(value)[:50]}, expected a whole number from 1")

    def sampler(self) -> str | Step:
        """The method with its variance."""
        return partial(ancestral, gamma=self.variance) if self.method == "ancestral" else self.method

    def steps_of(self, model: Model) -> int:
        """The steps of a model. Raise a UserError if neither it nor the options give them."""
        steps = self.steps if self.steps is not None else min(model.steps, default=None)
        if steps is None:
            raise UserError("this model was trained for any number of steps: set steps, e.g. 256")
        return steps

    def labels_of(self, model: Model) -> Tensor:
        """The number (N,) of each image's class or prompt. Raise a UserError if the model cannot make such images."""
        if self.label is None:
            return model.conditioning.drawn(self.count, self.prompts, self.shares)
        return torch.full((self.count,), model.conditioning.label_of(self.label))

    def check(self, model: Model, notify: Notify) -> None:
        """Refuse options that have no effect on a model, and warn of step counts that it was not distilled for."""
        if self.variance != 1 and self.method != "ancestral":
            raise UserError(f"variance applies only to method ancestral, not to {self.method}: remove it")
        if self.guidance is not None and not 0 < self.guidance < math.inf:
            raise UserError(f"guidance is {self.guidance:g}, expected a positive number, e.g. 3")
        if self.clip and model.autoencoder:
            raise UserError("clip applies only to images, and a latent model samples latents: remove it")
        steps, method = self.steps_of(model), self.method if isinstance(self.method, str) else ""
        if steps > 0 and not METHODS.get(model.method, METHODS["progressive"]).learned(model.steps, steps, method):
            own = any_of(model.steps, "step")
            notify(f"warning: the model was distilled for {own}, not {steps}: expect poor images")
        if self.label is None and len(model.labels) > 1 and not (self.shares or model.conditioning.shares):
            notify(
                f"all {counted(len(model.labels), 'class')} in turn: the model did not record its data's proportions"
            )


def sampling_noise(model: Model, count: int, seed: int) -> Tensor:
    """The noise of `progdist sample --seed`: (count, C, H, W), for latents if the model is latent."""
    return torch.randn(count, *model.shape, generator=generator(seed, SAMPLING_NOISE))


def noise_in_batches(count: int, shape: Sequence[int], batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Standard normal noise (batch, *shape), `count` rows in all, the same for any batch size."""
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
    options: SamplingOptions,
    *,
    conditions: Conditions | None = None,
    denoiser: DenoiserProtocol | None = None,
    generator: RowGenerator | None = None,
) -> Tensor:
    """Images (N, C, H, W) on the CPU from noise (N, ...), for latents if the model is latent, autocast and decoded.

    Labels (N,) are class labels, or numbers that `conditions` understands; `conditions` and `denoiser` replace the
    model's own. Of the options, steps, method, clipping, precision and batch are used. The generator draws the noise
    of stochastic methods for these N.
    """
    device, steps = next(model.denoiser.parameters()).device, options.steps_of(model)
    conditions, images = conditions or model.conditions(), []
    with autocast(device, options.precision):
        starts = range(0, len(noise), options.batch)
        for start, part, classes in zip(starts, noise.split(options.batch), labels.split(options.batch), strict=True):
            draw = generator.part(start, len(part)) if generator else None
            condition = conditions({"labels": classes.to(device)})
            made = sample(
                denoiser or model.denoiser, part.to(device), steps,
                method=options.sampler(), clip=options.clip, generator=draw, **condition,
            )  # fmt: skip
            images.append(made.float().cpu())
    return model.autoencoder.decode(torch.cat(images)) if model.autoencoder else torch.cat(images)


def check_images_finite(images: Tensor, first: int = 0) -> None:
    """Refuse images (N, C, H, W) that are not finite; the UserError names one, counted from `first`."""
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        number, count = first + int((~finite).nonzero()[0]), int((~finite).sum())
        raise UserError(
            f"image {number} and {count - 1} more of {len(images)} are not finite: the model is damaged, or diverges "
            "in these steps: try float32, clipping or other steps"
        )


def generate_images(model: Model, options: SamplingOptions, notify: Notify) -> tuple[Tensor, Tensor, int]:
    """Images (N, C, H, W), their labels (N,), and their steps. Raise a UserError for options that do not apply."""
    batches, steps = generate_batches(model, options, notify)
    _, images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels), steps


def generate_batches(
    model: Model, options: SamplingOptions, notify: Notify, makes: Callable[[int], bool] = lambda number: True
) -> tuple[Iterator[tuple[int, Tensor, Tensor]], int]:
    """(number, images, labels) of the batches of `generate_images`, and their steps; raises as it does.

    The model is moved to the GPU if there is one. Only batches whose number `makes` selects are made: each is the same
    whichever others are made.
    """
    options.check(model, notify)
    labels, size = options.labels_of(model), options.batch
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    conditions = _conditions(model, options, notify)

    def batches() -> Iterator[tuple[int, Tensor, Tensor]]:
        noise = noise_in_batches(options.count, model.shape, size, generator(options.seed, SAMPLING_NOISE))
        for number, (z, classes) in enumerate(zip(noise, labels.split(size), strict=True)):
            if makes(number):
                rows = range(number * size, number * size + len(z))
                draw = RowGenerator((options.seed, SAMPLING_NOISE, 1), rows)
                images = sample_in_batches(model, z, classes, options, conditions=conditions, generator=draw)
                yield number, images, classes

    return batches(), options.steps_of(model)


def _conditions(model: Model, options: SamplingOptions, notify: Notify) -> Conditions:
    """The network's condition for the class or prompt of each image."""
    guidance, scale = model.guidance, options.guidance
    if isinstance(guidance, Input):
        if scale is None:
            notify(f"guidance: {model.scale(None):g}, the default of {guidance}")
        elif scale not in guidance:
            notify(f"warning: the model was distilled for guidance of {guidance}, not {scale:g}")
    return model.conditions(scale, options.prompts)
