"""A recipe carried out: teach, distil stage by stage, evaluate every model, report.

Each finished model and each finished evaluation stays in the run's folder, so the same command again goes on where it
stopped and repeats nothing.
"""

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from progdist._errors import UserError
from progdist.batches import generator
from progdist.checkpoint import read_tensors, write_whole
from progdist.data import load_images
from progdist.denoiser import Denoises
from progdist.evaluate import Quality, quality, root_mean_square
from progdist.features import FeatureSpace, feature_space
from progdist.images import Images
from progdist.latents import encoded
from progdist.lesson import Observer
from progdist.model import Model
from progdist.model_folder import write_card
from progdist.recipe import Recipe, student_name
from progdist.recipe_file import read_recipe, write_recipe
from progdist.run_folder import GRID, Record, RunFolder, write_grid
from progdist.sampler import Step
from progdist.teacher_folder import Teacher, read_teacher
from progdist.teaching import Teaching, untrained
from progdist.team import Team
from progdist.trial import EVALUATION_NOISE, sample_in_batches, try_readings


@dataclass(frozen=True)
class Run:
    """One recipe in one folder with one team."""

    recipe: Recipe
    folder: RunFolder
    observer: Observer
    team: Team

    @cached_property
    def images(self) -> Images:
        """The data set."""
        data = self.recipe.data
        images = load_images(data.source, data.framing())
        if data.classes is not None and data.classes != len(images.classes):
            raise UserError(f"data.classes is {data.classes}, but {images.name} has {len(images.classes)}: mend either")
        return images

    @cached_property
    def spaces(self) -> list[tuple[FeatureSpace, Tensor]]:
        """Every feature space with the features of the data: as many images as are sampled, at least 10,000, or all."""
        pixels, _ = self.images.sample(max(self.recipe.evaluate.samples, 10_000), self.recipe.seed)
        spaces = [feature_space(name, self.images.shape) for name in self.recipe.evaluate.features]
        return [(space, space(pixels)) for space in spaces]

    @cached_property
    def given(self) -> Teacher | None:
        """The teacher to take, or None where one is trained."""
        told = self.recipe.teacher
        return read_teacher(told.model, told.offset) if told.model else None

    @cached_property
    def teaching(self) -> Teaching:
        """The trainings, on what the networks see: the images, or their latents."""
        seen = self.images
        if self.given and (autoencoder := self.given.model.to(self.team.device).autoencoder):
            cache, say = self.folder.latents(), self.observer.note
            self.team.decided(lambda: encoded(self.images, autoencoder, cache, say).shape)
            seen = encoded(self.images, autoencoder, cache, say)
        return Teaching(self.recipe, self.given, seen, self.folder, self.observer, self.team)

    def everything(self) -> list[Record]:
        """Teacher, students and their evaluations, in order; what exists is not made again."""
        self.prepare()
        with self.folder.owned():
            return self._carried_out()

    def _carried_out(self) -> list[Record]:
        self.observer.note(f"{self.images.name}: {len(self.images)} images of {'x'.join(map(str, self.images.shape))}")
        teacher = model = self.teaching.teacher()
        reference, *others = self.recipe.measurements()
        if self.given:
            self.evaluate("given", self.given.model, reference[1])
        self.evaluate(reference[0], teacher, reference[1])
        for number, stage in enumerate(self.recipe.distill.links(), 1):
            model = self.teaching.student(model, number, stage)
            for name, steps in others:
                if steps == stage.steps:
                    self.evaluate(name, model if name == "student" else teacher, steps)
        return list(self.folder.read("evaluations"))

    def prepare(self) -> None:
        """Find every mistake that can be found before hours are spent, then make the folder this run's own."""
        _ = self.spaces
        if rule := self.recipe.distill.stop:
            self.images.split(rule.held_out, self.recipe.seed)
        if self.given:
            self._fits(self.given.model)
            self._reads_well(self.given.model)
        else:
            untrained(self.recipe, self.images.shape, self.images.classes, self.images.name)
        names = ["teacher", *(student_name(stage.steps) for stage in self.recipe.distill.links())]
        finished = {name for name in names if self.folder.model(name).exists()}
        resolved = write_recipe(self.recipe)
        self.team.decided(
            lambda: self.folder.claim(resolved, lambda old: self.recipe.continues(read_recipe(str(old)), finished))
        )

    def _fits(self, model: Model) -> None:
        """Refuse a teacher that the data or the chain does not suit."""
        shape, classes = model.image, len(self.images.classes)
        if shape != self.images.shape:
            raise UserError(
                f"the teacher makes images of {shape}, {self.images.name} holds {self.images.shape} (channels, height, "
                "width): set data.size and data.channels"
            )
        if model.autoencoder and self.recipe.data.flip:
            raise UserError("data.flip is of images, and a latent model sees latents, encoded once: set it to false")
        if model.classes and not classes:
            raise UserError(f"the teacher has {len(model.classes)} classes, but {self.images.name} has no labels")
        if model.classes and classes > len(model.classes):
            raise UserError(f"{self.images.name} has {classes} classes, the teacher knows {len(model.classes)}")
        for count in self.recipe.distill.counts():
            if model.denoiser.timesteps % count:
                raise UserError(
                    f"the chain's {count} steps do not divide the teacher's {model.denoiser.timesteps} timesteps, so "
                    "stock samplers would visit other times: choose counts that do"
                )

    def _reads_well(self, model: Model) -> None:
        """Refuse a teacher whose output the data contradict, unless it is trusted."""
        if self.recipe.teacher.trust or self.folder.model("teacher").exists():
            return
        model.to(self.team.device)
        complaint = self.team.decided(lambda: try_readings(model, self.images, self.recipe.seed).complaint)
        if complaint:
            raise UserError(f"{self.recipe.teacher.model}: {complaint} (or take it with --set teacher.trust=true)")

    def evaluate(self, name: str, model: Model, steps: int) -> None:
        """Measure a model at a step count, keep the record and a grid of its samples."""
        key = (name, steps)
        if self.team.decided(lambda: key in {(one["model"], one["steps"]) for one in self.folder.read("evaluations")}):
            return
        started = time.perf_counter()
        given = self.given if name == "given" else None
        images, labels = self.samples(model, steps, denoiser=self.teaching.reference(given) if given else None)
        seconds = time.perf_counter() - started
        self.team.decided(lambda: self._keep(name, model, steps, images, labels, seconds))

    def _keep(self, name: str, model: Model, steps: int, images: Tensor, labels: Tensor, seconds: float) -> None:
        """Compare a model's images with the data; write the record, the grid and the card."""
        path = self.folder.reference()
        if not path.is_file():
            write_whole(path, to_bytes({"images": images}))
        reference = read_tensors(path)["images"]
        record = {
            "model": name,
            "steps": steps,
            "network_evaluations": steps,
            "seconds_per_image": seconds / len(images),
            "rmse": root_mean_square(images, reference),
            "training": dict(model.training),
            "quality": [asdict(result) for result in self.qualities(model, images, labels)],
        }
        write_grid(images[:GRID], self.folder.grid(name, steps))
        self.folder.append("evaluations", record)
        place = self.folder.model(student_name(steps) if name == "student" else name)
        if place.is_dir():
            told = (each for each in self.folder.read("evaluations") if each["model"] == name)
            write_card(model, place, [each for each in told if name == "teacher" or each["steps"] == steps])
        self.observer.evaluated(record)

    def qualities(self, model: Model, images: Tensor, labels: Tensor) -> list[Quality]:
        """A model's images, made for the labels, against the data in every feature space."""
        given, resamples = labels if model.classes else None, self.recipe.evaluate.resamples
        return [quality(space, data, images, given, resamples=resamples) for space, data in self.spaces]

    def samples(
        self, model: Model, steps: int, method: str | Step = "ddim", denoiser: Denoises | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images and labels of the run's own noise, the same for every model and step count; classes as in the data.

        `denoiser` stands in for the model's own, e.g. guided.
        """
        wanted = self.recipe.evaluate
        draw = generator(self.recipe.seed, EVALUATION_NOISE)
        noise = torch.randn(wanted.samples, *model.shape, generator=draw)
        labels = self.images.spread_labels(wanted.samples)
        parts = list(zip(noise.split(wanted.batch), labels.split(wanted.batch), strict=True))
        draw = generator(self.recipe.seed, EVALUATION_NOISE, 1)
        made = self.team.shared(
            lambda place: sample_in_batches(
                model,
                *parts[place],
                steps,
                wanted.batch,
                precision=wanted.precision,
                clip=wanted.clip,
                method=method,
                draw=draw,
                denoiser=denoiser,
            ),
            len(parts),
        )
        images = torch.cat(made)
        return images, labels


def open_run(recipe: Recipe, out: Path, observer: Observer, *, shards: bool = False) -> Run:
    """A recipe in a folder, on this machine."""
    team = Team(shards=shards)
    return Run(recipe, RunFolder(out, writes=team.leads), observer, team)


def run(recipe: Recipe, out: Path, observer: Observer, *, fresh: bool = False, shards: bool = False) -> list[Record]:
    """Carry out a recipe in a folder, or go on with it; with other processes, if they were started together.

    Args:
        recipe: what to do.
        out: the run's folder; made if missing.
        observer: told of what happens.
        fresh: start over; an older run in the folder is renamed.
        shards: spread each network over the processes while it trains (see `progdist.sharding`).

    Returns:
        The evaluation records.

    Raises:
        UserError: anything the user can mend; what is written stays.
    """
    opened = open_run(recipe, out, observer, shards=shards)
    if fresh and (aside := opened.team.decided(opened.folder.set_aside)):
        observer.note(f"the older run is now {aside}")
    return opened.everything()
