"""Run a recipe: train or read the teacher, distil stage by stage, evaluate every model, write the report.

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

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, read_tensors
from progdist._utils.random import EVALUATION_NOISE, generator
from progdist.data.grid import GRID, write_grid
from progdist.data.images import Images
from progdist.data.latents import encoded
from progdist.data.sources import load_images
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import WEIGHTINGS
from progdist.diffusion.sampler import Step
from progdist.distillation.chain import distill_chain
from progdist.distillation.conversion import converted_form
from progdist.distillation.progressive import check_weighting
from progdist.evaluation.features import FeatureSpace, feature_space
from progdist.evaluation.metrics import Quality, quality, root_mean_square
from progdist.evaluation.sampling import sample_in_batches
from progdist.evaluation.teacher_check import check_on_images
from progdist.models.io.diffusers_pipeline import Teacher, read_teacher
from progdist.models.io.folder import write_card
from progdist.models.model import Model
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe, student_name
from progdist.runs.checks import check_compatible, with_precision
from progdist.runs.folder import Record, RunFolder
from progdist.runs.report import write_report
from progdist.runs.stages import RunStages, untrained
from progdist.training.callbacks import Callback
from progdist.training.distributed import Distributed


@dataclass(frozen=True)
class Run:
    """One recipe in one folder."""

    recipe: Recipe
    folder: RunFolder
    callback: Callback
    distributed: Distributed

    @cached_property
    def images(self) -> Images:
        """The data set."""
        data = self.recipe.data
        images = load_images(data.source, data.transform())
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
        records = self.recipe.teacher
        return read_teacher(records.model, records.offset) if records.model else None

    @cached_property
    def stages(self) -> RunStages:
        """The trainings, on what the networks see: the images, or their latents."""
        seen = self.images
        if self.given and (autoencoder := self.given.model.to(self.distributed.device).autoencoder):
            cache, notify = self.folder.latents(), self.callback.note
            self.distributed.on_main_process(lambda: encoded(self.images, autoencoder, cache, notify).shape)
            seen = encoded(self.images, autoencoder, cache, notify)
        return RunStages(self.recipe, self.given, seen, self.folder, self.callback, self.distributed)

    def run(self) -> list[Record]:
        """Teacher, students and their evaluations, in order; what exists is not made again."""
        self.prepare()
        with self.folder.locked(self.callback.note):
            self._write_page()
            return self._run_stages()

    def _run_stages(self) -> list[Record]:
        self.callback.note(f"{self.images.name}: {len(self.images)} images of {'x'.join(map(str, self.images.shape))}")
        self.callback.note(f"live report: {self.folder.report()}")
        teacher = self.stages.teacher()
        reference, *others = self.recipe.measurements()
        if self.given:
            self.evaluate("given", self.given.model, reference[1])
        self.evaluate(reference[0], teacher, reference[1])
        self._write_page()
        for stage, student in distill_chain(teacher, self.recipe.distill.links(), self.stages.student):
            for name, steps in others:
                if steps == stage.steps:
                    self.evaluate(name, student if name == "student" else teacher, steps)
            self._write_page()
        return list(self.folder.read("evaluations"))

    def prepare(self) -> None:
        """Find every mistake that can be found before hours are spent, then make the folder this run's own."""
        _ = self.spaces
        if rule := self.recipe.distill.stop:
            self.images.split(rule.held_out, self.recipe.seed)
        if self.given:
            check_compatible(self.recipe, self.given.model, self.images)
            self._check_teacher(self.given.model)
        shape, classes, name = self.images.shape, self.images.classes, self.images.name
        start = (
            converted_form(self.given.model.denoiser)
            if self.given
            else untrained(self.recipe, shape, classes, name).denoiser
        )
        weighting = WEIGHTINGS[self.recipe.distill.weighting]
        check_weighting(start.schedule, weighting, self.recipe.distill.counts()[-1])
        names = ["teacher", *(student_name(stage.steps) for stage in self.recipe.distill.links())]
        finished = {name for name in names if self.folder.model(name).exists()}
        resolved = write_recipe(self.recipe)
        self.distributed.on_main_process(
            lambda: self.folder.claim(resolved, lambda old: self.recipe.continues(read_recipe(str(old)), finished))
        )

    def _write_page(self) -> None:
        """Write report.html as far as the run has come."""
        self.distributed.on_main_process(lambda: write_report(self.folder))

    def _check_teacher(self, model: Model) -> None:
        """Refuse a teacher whose output the data contradict, unless it is trusted."""
        if self.recipe.teacher.trust or model.steps or self.folder.model("teacher").exists():
            return
        model.to(self.distributed.device)
        problem = self.distributed.on_main_process(
            lambda: check_on_images(model, self.images, self.recipe.seed).problem
        )
        if problem:
            raise UserError(f"{self.recipe.teacher.model}: {problem} (or take it with --set teacher.trust=true)")

    def evaluate(self, name: str, model: Model, steps: int) -> None:
        """Measure a model at a step count, keep the record and a grid of its samples."""
        key = (name, steps)
        if self.distributed.on_main_process(
            lambda: key in {(one["model"], one["steps"]) for one in self.folder.read("evaluations")}
        ):
            return
        started = time.perf_counter()
        images, labels = self.samples(model, steps, denoiser=self._predictions(name, model))
        seconds = time.perf_counter() - started
        self.distributed.on_main_process(lambda: self._keep(name, model, steps, images, labels, seconds))

    def _predictions(self, name: str, model: Model) -> DenoiserProtocol:
        """What is sampled: teachers as their own samplers clip and guide them."""
        if name == "given" and self.given:
            return self.stages.reference(self.given)
        return self.stages.as_sampled(model) if name == "teacher" else model.denoiser

    def _keep(self, name: str, model: Model, steps: int, images: Tensor, labels: Tensor, seconds: float) -> None:
        """Compare a model's images with the data; write the record, the grid and the card."""
        path = self.folder.reference()
        if not path.is_file():
            atomic_write(path, to_bytes({"images": images}))
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
            records = (each for each in self.folder.read("evaluations") if each["model"] == name)
            write_card(model, place, [each for each in records if name == "teacher" or each["steps"] == steps])
        self.callback.evaluated(record)

    def qualities(self, model: Model, images: Tensor, labels: Tensor) -> list[Quality]:
        """A model's images, made for the labels, against the data in every feature space."""
        given, resamples = labels if model.classes else None, self.recipe.evaluate.resamples
        return [quality(space, data, images, given, resamples=resamples) for space, data in self.spaces]

    def samples(
        self, model: Model, steps: int, method: str | Step = "ddim", denoiser: DenoiserProtocol | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images and labels of the run's own noise, the same for every model and step count; classes as in the data.

        `denoiser` stands in for the model's own, e.g. guided.
        """
        wanted = self.recipe.evaluate
        draw = generator(self.recipe.seed, EVALUATION_NOISE)
        noise = torch.randn(wanted.samples, *model.shape, generator=draw)
        labels = self.images.stratified_labels(wanted.samples)
        parts = list(zip(noise.split(wanted.batch), labels.split(wanted.batch), strict=True))
        draw = generator(self.recipe.seed, EVALUATION_NOISE, 1)
        made = self.distributed.map_over_ranks(
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


def open_run(recipe: Recipe, out: Path, callback: Callback, *, shards: bool = False, fresh: bool = False) -> Run:
    """A recipe in a folder, on this machine; with `fresh` an older run in the folder is renamed first."""
    distributed = Distributed(shards=shards)
    folder = RunFolder(out, writes=distributed.is_main_process)
    if fresh and (aside := distributed.on_main_process(folder.move_aside)):
        callback.note(f"the older run is now {aside}")
    chosen, remarks = distributed.on_main_process(lambda: with_precision(recipe, folder.recipe(), distributed.device))
    for remark in remarks:
        callback.note(remark)
    return Run(chosen, folder, callback, distributed)


def run(recipe: Recipe, out: Path, callback: Callback, *, fresh: bool = False, shards: bool = False) -> list[Record]:
    """Run a recipe in a folder, or resume it; with several processes under torchrun or accelerate.

    Args:
        recipe: what to do.
        out: the run's folder; made if missing.
        callback: called with everything that happens.
        fresh: start over; an older run in the folder is renamed.
        shards: spread each network over the processes while it trains (see `progdist.training.sharding`).

    Returns:
        The evaluation records.

    Raises:
        UserError: anything the user can mend; what is written stays.
    """
    return open_run(recipe, out, callback, shards=shards, fresh=fresh).run()
