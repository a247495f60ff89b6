"""Models to play with: the options of each, and its images for a request, timed.

All models start from the same noise, that of `progdist sample --seed`, so models of one shape can be compared image by
image.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from progdist._utils.broadcasting import time_device
from progdist._utils.errors import UserError
from progdist.data.grid import grid_image
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.sampler import network_evaluations
from progdist.distillation import taught_predictions, with_guidance
from progdist.evaluation.generate import SamplingOptions, check_images_finite, sample_in_batches, sampling_noise
from progdist.methods.guidance import Input
from progdist.models.conditioning import Classes, Conditions
from progdist.models.model import Model
from progdist.models.networks import example_condition
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe, student_name
from progdist.runs.folder import RunFolder
from progdist.runs.pages.slides import data_uri
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load

IMAGES = 16  # images per request
SOLVERS = ("ddim", "dpmpp")  # sampling methods for a model of any step count
LONGEST_PROMPT, LARGEST_GUIDANCE = 1000, 1000.0  # characters; far above practical scales


@dataclass(frozen=True)
class DrawRequest:
    """A request for images of one model."""

    seed: int  # seed of the noise, below 2^32
    steps: int  # sampling steps
    method: str = "ddim"  # sampling method
    label: int | str | None = None  # a class, by number or name; None for all, as often as in the data
    prompt: str = ""  # prompt of a text-conditional model
    guidance: float | None = None  # guidance scale, for a model that takes one; None for its default

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "DrawRequest":
        """Parse a page's request; a UserError if a number is invalid or out of range."""
        label, prompt, guidance = content.get("label"), content.get("prompt", ""), content.get("guidance")
        if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
            raise UserError(f"expected a prompt of at most {LONGEST_PROMPT} characters: shorten it")
        number = isinstance(guidance, int | float) and not isinstance(guidance, bool)
        if guidance is not None and not (number and 0 < guidance <= LARGEST_GUIDANCE):
            raise UserError(f"guidance is {str(guidance)[:20]}, expected a positive number up to {LARGEST_GUIDANCE:g}")

        def whole(name: str, least: int, most: int) -> int:
            number = content.get(name)
            if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
                raise UserError(f"{name} is {str(number)[:20]}, expected a whole number from {least} to {most}")
            return number

        seed, steps = whole("seed", 0, 2**32 - 1), whole("steps", 1, 2**20)
        label = label if label is None or isinstance(label, str) else whole("label", 0, 2**20)
        if isinstance(label, str) and len(label) > LONGEST_PROMPT:
            raise UserError(f"expected a label of at most {LONGEST_PROMPT} characters: shorten it")
        return cls(seed, steps, str(content.get("method", "ddim")), label, prompt, guidance)


class Abandoned(Exception):
    """The client no longer waits for the images."""


@contextmanager
def while_wanted(network: nn.Module, wanted: Callable[[], bool]) -> Iterator[None]:
    """Context that checks `wanted` before each evaluation of the network, and raises Abandoned if it is false."""

    def ask(module: nn.Module, inputs: object) -> None:
        if not wanted():
            raise Abandoned

    handle = network.register_forward_pre_hook(ask, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Playable:
    """One model on the page."""

    title: str  # name on the page
    model: Model  # ready to sample, on its device
    default_steps: int  # initial number of steps
    predictions: DenoiserProtocol | None = None  # a teacher's guided predictions, in place of the model's own
    run: RunFolder | None = None  # its run, whose training images the page shows

    @property
    def guidance(self) -> Input | None:
        """The range of guidance scales that it takes; None without a guidance input."""
        guidance = self.model.guidance
        return guidance if isinstance(guidance, Input) else None

    def describe(self) -> dict[str, Any]:
        """The description of the model for the page."""
        most = self.model.denoiser.most_steps
        counts = {2**power for power in range(11) if 2**power <= most} | {self.default_steps, *self.model.steps}
        return {
            "title": self.title,
            "steps": self.default_steps,
            "counts": sorted(counts),
            "own": sorted(self.model.steps),
            "methods": [] if self.model.steps else list(SOLVERS),
            "classes": [(label, self.model.classes[label]) for label in self.model.labels],
            "text": self.model.conditioning.takes_prompts,
            "guidance": self.guidance and [self.guidance.low, self.guidance.high, self.model.scale(None)],
        }

    def draw(self, request: DrawRequest, wanted: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        """The images as a data URI, the milliseconds of all, and their network evaluations.

        Raises:
            Abandoned: `wanted` returned false.
            UserError: as in `_check`, or the images are not finite.
        """
        self._check(request)
        options = SamplingOptions(request.steps, IMAGES, request.label, request.seed, request.method, batch=IMAGES)
        labels = options.labels_of(self.model)
        conditions, noise = self._conditions(request), sampling_noise(self.model, IMAGES, request.seed)
        started = time.perf_counter()
        with while_wanted(self.model.denoiser.network, wanted):
            images = sample_in_batches(
                self.model, noise, labels, options, conditions=conditions, denoiser=self.predictions
            )
        seconds = time.perf_counter() - started
        check_images_finite(images)
        buffer = io.BytesIO()
        grid_image(images, 4).save(buffer, "png")
        return {
            "image": data_uri("png", buffer.getvalue()),
            "width": 4 * self.model.image[2] + 3,
            "milliseconds": 1000 * seconds,
            "images": IMAGES,
            "evaluations": network_evaluations(request.steps, request.method),
        }

    def _check(self, request: DrawRequest) -> None:
        """Refuse options that the model does not take."""
        most = self.model.denoiser.most_steps
        if request.steps > most:
            raise UserError(f"{self.title}: steps is {request.steps}, expected 1 to {most}")
        methods = ["ddim"] if self.model.steps else SOLVERS
        if request.method not in methods:
            raise UserError(f"{self.title}: method is {request.method[:20]!r}, expected {' or '.join(methods)}")
        if self.model.conditioning.takes_prompts and not request.prompt.strip():
            raise UserError(f"{self.title} requires a prompt: enter one")
        if request.guidance is not None and self.guidance is None:
            raise UserError(f"{self.title} takes no guidance scale: remove it")

    def _conditions(self, request: DrawRequest) -> Conditions:
        """The network's inputs for the class or the prompt; a prompt is encoded once."""
        return self._encoded(request.prompt).at(self.model.scale(request.guidance))

    @cached_property
    def _encoded(self) -> Any:  # noqa: ANN401  (a function with a cache)
        model = self.model

        @lru_cache(maxsize=64)
        def encode(prompt: str) -> Conditions:
            return model.conditions(prompts=(prompt,) if prompt.strip() else ())

        return encode


def open_playables(folders: Sequence[Path]) -> list[Playable]:
    """Open the models of runs or model folders on the GPU, if there is one, and warm them up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    every = [playable for folder in folders for playable in _open(folder, device)]
    for playable in every:
        model = playable.model.to(device)
        noise = sampling_noise(model, IMAGES, 0).to(device)
        start = torch.ones((), dtype=torch.float64, device=time_device(device))
        with torch.no_grad():
            model.denoiser(noise, start, **example_condition(model.denoiser, IMAGES, device))
    return every


def _open(folder: Path, device: torch.device) -> list[Playable]:
    """The models of one folder; the teacher first, and an existing teacher before its stage-0 conversion."""
    run = RunFolder(folder)
    if not run.recipe().is_file():
        model = load(folder)
        most = min(64, model.denoiser.most_steps)
        return [Playable(folder.resolve().name, model, min(model.steps, default=most))]
    recipe = read_recipe(str(run.recipe()))
    counts = recipe.distill.counts()
    names = {"teacher": counts[0], "converted": counts[0]} | {student_name(count): count for count in counts[1:]}
    finished = {name: count for name, count in names.items() if run.model(name).is_dir()}
    if not finished:
        raise UserError(f"{folder} has no finished model yet: wait for the teacher, or name another run")
    title = folder.resolve().name
    every = [Playable(f"{title}/{name}", load(run.model(name)), count, run=run) for name, count in finished.items()]
    return [*_own_teacher(every[0], recipe, device), *every] if "converted" in finished else every


def _own_teacher(converted: Playable, recipe: Recipe, device: torch.device) -> list[Playable]:
    """The original teacher of a run that converted it, as its students learned it: guided if they are.

    Empty if it no longer exists, or if the guidance scale is an input of the students, which it lacks.
    """
    run, how, plan = converted.run, recipe.teacher, recipe.plan()
    if run is None or how.model is None or isinstance(plan.guidance, Input):
        return []
    place, labels = str(run.base() if run.base().is_dir() else how.model), len(converted.model.labels)
    try:
        teacher = with_guidance(plan, open_teacher(place, how.offset, how.call), labels)
    except UserError:
        return []
    known, conditioning = converted.model.conditioning, teacher.model.conditioning
    if isinstance(conditioning, Classes) and isinstance(known, Classes):  # class frequencies of the data
        conditioning = replace(conditioning, shares=known.shares)
    model = replace(teacher.model, conditioning=conditioning).to(device)
    predictions = taught_predictions(plan, replace(teacher, model=model), device)
    return [replace(converted, title=f"{run.root.resolve().name}/teacher", model=model, predictions=predictions)]
