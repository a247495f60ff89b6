"""Models to play with: what each can be asked for, and the images that it makes of an answer, timed.

All models start from the noise of one seed, that of `progdist sample --seed`, so models of one shape can be compared
image by image.
"""

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from progdist._utils.broadcasting import time_device
from progdist._utils.errors import UserError
from progdist.data.grid import grid_image
from progdist.diffusion.sampler import network_evaluations
from progdist.evaluation.generate import SamplingOptions, sampling_noise
from progdist.evaluation.sampling import sample_in_batches
from progdist.models.conditions import CaptionConditions, prompt_conditions
from progdist.models.model import Model
from progdist.models.prompts import trial_condition
from progdist.models.unet import Conditions, class_conditions
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import student_name
from progdist.runs.folder import RunFolder
from progdist.students.folder import load

IMAGES = 16
"""Drawn at a time."""

SOLVERS = ("ddim", "dpmpp")
"""Methods that a model of any step count can be sampled by."""

LONGEST_PROMPT = 1000
"""Characters."""

LARGEST_GUIDANCE = 1000.0
"""Far beyond any scale that is used."""


@dataclass(frozen=True)
class Wanted:
    """What a person asks of one model.

    Attributes:
        seed: of the noise, below 2^32.
        steps: sampling steps.
        method: of sampling.
        label: a class; None for all in turn.
        prompt: of a text-conditional model.
        guidance: the scale of a model that takes one; None for its usual one.
    """

    seed: int
    steps: int
    method: str = "ddim"
    label: int | None = None
    prompt: str = ""
    guidance: float | None = None

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Wanted":
        """From what a page sent.

        Raises:
            UserError: a number is none, or out of range.
        """
        label, prompt, guidance = told.get("label"), told.get("prompt", ""), told.get("guidance")
        if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
            raise UserError(f"prompt is no text of at most {LONGEST_PROMPT} characters: shorten it")
        if guidance is not None and not _is_scale(guidance):
            raise UserError(f"guidance is {str(guidance)[:20]}, expected a positive number up to {LARGEST_GUIDANCE:g}")
        return cls(
            seed=_whole(told, "seed", 0, 2**32 - 1),
            steps=_whole(told, "steps", 1, 2**20),
            method=str(told.get("method", "ddim")),
            label=None if label is None else _whole(told, "label", 0, 2**20),
            prompt=prompt,
            guidance=guidance,
        )


def _is_scale(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 < number <= LARGEST_GUIDANCE


def _whole(told: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """A whole number of what was told."""
    number = told.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise UserError(f"{name} is {str(number)[:20]}, expected a whole number from {least} to {most}")
    return number


@dataclass(frozen=True)
class Playable:
    """One model on the page.

    Attributes:
        title: what it is called.
        model: ready to sample, on its device.
        usual: the steps that it takes at first.
    """

    title: str
    model: Model
    usual: int

    @property
    def guidance(self) -> tuple[float, float] | None:
        """The least and the largest guidance scale that it can be given; None where it takes none."""
        taken = self.model.guidance
        return taken if isinstance(taken, tuple) else None

    def describe(self) -> dict[str, Any]:
        """What the page needs to know of it."""
        most = self.model.denoiser.timesteps
        counts = {2**power for power in range(11) if 2**power <= most} | {self.usual, *self.model.steps}
        return {
            "title": self.title,
            "steps": self.usual,
            "counts": sorted(counts),
            "own": sorted(self.model.steps),
            "methods": [] if self.model.steps else list(SOLVERS),
            "classes": [(label, self.model.classes[label]) for label in self.model.labels],
            "text": self.model.text is not None,
            "guidance": self.guidance and [*self.guidance, self.model.scale(None)],
        }

    def draw(self, wanted: Wanted) -> dict[str, Any]:
        """The images as a data URI, the milliseconds that all of them took, and their network evaluations.

        Raises:
            UserError: something is asked that the model does not have.
        """
        self._check(wanted)
        labels = SamplingOptions(wanted.steps, IMAGES, wanted.label, wanted.seed).labels_of(self.model)
        conditions, noise = self._conditions(wanted), sampling_noise(self.model, IMAGES, wanted.seed)
        started = time.perf_counter()
        images = sample_in_batches(
            self.model, noise, labels, wanted.steps, IMAGES, method=wanted.method, conditions=conditions
        )
        seconds = time.perf_counter() - started
        buffer = io.BytesIO()
        grid_image(images, 4).save(buffer, "png")
        return {
            "image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
            "width": 4 * self.model.image[2] + 3,
            "milliseconds": 1000 * seconds,
            "images": IMAGES,
            "evaluations": network_evaluations(wanted.steps, wanted.method),
        }

    def _check(self, wanted: Wanted) -> None:
        """Refuse what the model does not have."""
        most = self.model.denoiser.timesteps
        if wanted.steps > most:
            raise UserError(f"{self.title} takes 1 to {most} steps, not {wanted.steps}")
        if wanted.method not in (["ddim"] if self.model.steps else SOLVERS):
            raise UserError(f"{self.title} is not sampled by {wanted.method[:20]!r}: use {' or '.join(SOLVERS)}")
        if self.model.text and not wanted.prompt.strip():
            raise UserError(f"{self.title} makes images of captions: write what to make")
        if wanted.guidance is not None and self.guidance is None:
            raise UserError(f"{self.title} takes no guidance scale: leave it out")

    def _conditions(self, wanted: Wanted) -> Conditions:
        """What tells the network the class or the prompt; a prompt is encoded once."""
        if self.model.text is None:
            return class_conditions(self.model.denoiser.network, self.model.scale(wanted.guidance))
        return self._encoded(wanted.prompt).at(self.model.scale(wanted.guidance))

    @cached_property
    def _encoded(self) -> Any:  # noqa: ANN401  (a function with a cache)
        model = self.model

        @lru_cache(maxsize=64)
        def encode(prompt: str) -> CaptionConditions:
            return prompt_conditions(model, (prompt,), None)

        return encode


def open_playables(folders: Sequence[Path]) -> list[Playable]:
    """The models of runs and the models themselves, moved to the GPU where there is one, and warm.

    Raises:
        UserError: a folder is neither a run with a model nor a model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    every = [playable for folder in folders for playable in _open(folder)]
    for playable in every:
        model = playable.model.to(device)
        noise = sampling_noise(model, IMAGES, 0).to(device)
        start = torch.ones((), dtype=torch.float64, device=time_device(device))
        with torch.no_grad():
            model.denoiser(noise, start, **trial_condition(model.denoiser.network, IMAGES, device))
    return every


def _open(folder: Path) -> list[Playable]:
    """The models of one folder; teacher first."""
    run = RunFolder(folder)
    if not run.recipe().is_file():
        model = load(folder)
        return [Playable(folder.resolve().name, model, min(model.steps, default=min(64, model.denoiser.timesteps)))]
    counts = read_recipe(str(run.recipe())).distill.counts()
    names = {"teacher": counts[0]} | {student_name(count): count for count in counts[1:]}
    found = {name: count for name, count in names.items() if run.model(name).is_dir()}
    if not found:
        raise UserError(f"{folder} has no finished model yet: wait for the teacher, or give another run")
    title = folder.resolve().name
    return [Playable(f"{title}/{name}", load(run.model(name)), count) for name, count in found.items()]
