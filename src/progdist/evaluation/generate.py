"""Images from a model, in batches: what `progdist sample` and `progdist evaluate` make."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist._utils.random import SAMPLING_NOISE, generator
from progdist.diffusion.integrators import Step
from progdist.diffusion.sampler import ancestral
from progdist.evaluation.sampling import noise_in_batches, sample_in_batches
from progdist.models.conditions import prompt_conditions
from progdist.models.model import Model
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
        method: of sampling, one of `sampler.METHODS` or `sampler.MULTISTEP_METHODS`.
        clip: keep every denoised image within [-1, 1].
        variance: of the ancestral sampler's variance, from 0, its lower bound, to 1, its upper.
        batch: how many at a time.
        precision: of the network.
        prompts: of a text-conditional model, all in turn.
        guidance: the scale of a model that was distilled for a range of it; None for the usual one.
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

    def steps_of(self, model: Model) -> int:
        """The steps that a model takes.

        Raises:
            UserError: none are given, and the model has none of its own.
        """
        steps = self.steps if self.steps is not None else min(model.steps, default=None)
        if steps is None:
            raise UserError(
                "this model was trained for any number of steps: say how many with --steps, e.g. --steps 256"
            )
        return steps

    def labels_of(self, model: Model) -> Tensor:
        """The number of the class, or of the prompt, of each image: (N,).

        Raises:
            UserError: the model has no such class, or it stands for none.
        """
        if self.label is None:
            kinds = range(len(self.prompts)) if model.text else model.labels
            return torch.tensor(kinds or [0])[torch.arange(self.count) % max(1, len(kinds))]
        if self.label >= len(model.classes):
            expected = f"0 to {max(model.labels)}" if model.labels else "none, since the model has no classes"
            raise UserError(f"label {self.label} is out of range: expected {expected}")
        if self.label not in model.labels:
            raise UserError(
                f"label {self.label} stands for no class, and images are made of a class: give another, or leave it out"
            )
        return torch.full((self.count,), self.label)

    def check(self, model: Model, notify: Notify) -> None:
        """Refuse options that have no effect on a model, and warn of step counts that it does not know.

        Raises:
            UserError: names the option.
        """
        if self.variance != 1 and self.method != "ancestral":
            raise UserError(f"--variance is of --method ancestral, and {self.method} adds no such noise: leave it out")
        if self.guidance is not None and not 0 < self.guidance < math.inf:
            raise UserError(f"--guidance {self.guidance:g} is no scale: give a positive number, e.g. 3")
        if self.clip and model.autoencoder:
            raise UserError("--clip is of images, and a latent model samples latents: leave it out")
        steps = self.steps_of(model)
        if steps > 0 and not _knows(model, steps, self.method):
            notify(f"warning: the model was distilled for {_listed(model.steps)}, not {steps}: expect poor images")


def sampling_noise(model: Model, count: int, seed: int) -> Tensor:
    """The noise that `progdist sample --seed` starts from: (count, C, H, W), of latents for a latent model."""
    return torch.randn(count, *model.shape, generator=generator(seed, SAMPLING_NOISE))


def generate_images(model: Model, options: SamplingOptions, notify: Notify) -> tuple[Tensor, Tensor, int]:
    """Images (N, C, H, W), their labels (N,), and the steps they took.

    Raises:
        UserError: a label out of range, no step count to be had, or an option that has no effect.
    """
    batches, steps = generate_batches(model, options, notify)
    _, images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels), steps


def generate_batches(
    model: Model, options: SamplingOptions, notify: Notify, wanted: Callable[[int], bool] = lambda number: True
) -> tuple[Iterator[tuple[int, Tensor, Tensor]], int]:
    """The images of `generate_images`, `options.batch` at a time, and the steps they take.

    Args:
        model: moved to the GPU where there is one.
        options: what to make.
        notify: told of warnings.
        wanted: whether to make the batch of a number; each is the same whichever others are made.

    Returns:
        (number of the batch, images, labels) of every one that is wanted; and the steps.

    Raises:
        UserError: as `generate_images`.
    """
    options.check(model, notify)
    steps, labels = options.steps_of(model), options.labels_of(model)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    conditions, size = _conditions(model, options, notify), options.batch

    def batches() -> Iterator[tuple[int, Tensor, Tensor]]:
        noise = noise_in_batches(options.count, model.shape, size, generator(options.seed, SAMPLING_NOISE))
        for number, (z, classes) in enumerate(zip(noise, labels.split(size), strict=True)):
            if wanted(number):
                images = sample_in_batches(
                    model, z, classes, steps, size,
                    precision=options.precision, clip=options.clip, method=options.sampler(), conditions=conditions,
                    generator=generator(options.seed, SAMPLING_NOISE, 1, *([number] if number else [])),
                )  # fmt: skip
                yield number, images, classes

    return batches(), steps


def _conditions(model: Model, options: SamplingOptions, notify: Notify) -> Conditions:
    """What tells the network the class or the prompt of each image."""
    taken, asked = model.guidance, options.guidance
    if isinstance(taken, tuple) and asked is not None and not taken[0] <= asked <= taken[1]:
        notify(f"warning: the model was distilled for guidance of {taken[0]:g} to {taken[1]:g}, not {asked:g}")
    if isinstance(taken, tuple) and asked is None:
        notify(f"guidance: {model.scale(None):g}, the usual scale of {taken[0]:g} to {taken[1]:g}")
    if model.text is None:
        if options.prompts:
            raise UserError("--prompt is of text-conditional models, and this is none: leave it out")
        return class_conditions(model.denoiser.network, model.scale(asked))
    if not options.prompts:
        raise UserError('this model makes images of captions: say what to make with --prompt "..."')
    return prompt_conditions(model, options.prompts, asked)


def _knows(model: Model, steps: int, method: str) -> bool:
    """Whether a model learned to take so many steps of a method (see `progdist.methods.transitive`)."""
    if not model.steps or steps in model.steps:
        return True
    if model.target == "stochastic" and method == "overshoot":
        return steps % 2 == 0 and steps // 2 in model.steps
    return model.target == "tract" and method == "consistency" and 1 in model.steps


def _listed(counts: Sequence[int]) -> str:
    words = [str(count) for count in counts]
    return f"{' or '.join(words)} step{'s' if list(counts) != [1] else ''}"
