"""Run a recipe: train or read the teacher, distil stage by stage, evaluate every model, write the report.

Each finished model and each finished evaluation stays in the run's folder, so the same command again goes on where it
stopped and repeats nothing.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from progdist._utils.errors import UserError
from progdist._utils.random import HELD_OUT_NOISE
from progdist.compute.placement import at_work
from progdist.data.images import Images
from progdist.data.latents import begin_latents, encode, open_latents
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import WEIGHTINGS
from progdist.evaluation.check_on_images import check_on_images
from progdist.methods.chain import Stage, distill_chain
from progdist.methods.conversion import BANDS, form_in_words, guidance_edges, prediction_errors, rms_by_interval
from progdist.methods.progressive import check_weighting
from progdist.models.model import Model
from progdist.recipes.files import write_recipe
from progdist.recipes.from_teacher import needs_stage_0, student_form, unconverted
from progdist.recipes.recipe import Recipe
from progdist.runs import checks
from progdist.runs.evaluator import Evaluator, instruments
from progdist.runs.folder import Record, RunFolder
from progdist.runs.pages.live import live
from progdist.runs.pages.report import write_report
from progdist.runs.stage_trainer import StageTrainer
from progdist.runs.stages import (
    RunConditions,
    conversion_stage,
    guided_predictions,
    student_stage,
    teacher_predictions,
    teacher_stage,
    untrained,
)
from progdist.runs.teacher_checks import check_options
from progdist.runs.tracking import tracked
from progdist.teachers.open import Teacher, read_teacher
from progdist.training.callbacks import Callback
from progdist.training.distributed import Distributed


@dataclass(frozen=True)
class Run:
    """One recipe in one folder.

    Attributes:
        recipe: with every `auto` resolved.
        images: the data set.
        given: the teacher to take; None where one is trained.
        folder: where everything is kept.
        callback: called with everything that happens.
        distributed: the processes.
    """

    recipe: Recipe
    images: Images
    given: Teacher | None
    folder: RunFolder
    callback: Callback
    distributed: Distributed

    def run(self) -> list[Record]:
        """Teacher, students and their evaluations, in order; what exists is not made again."""
        evaluator = self.evaluator()
        self.prepare()
        with self.folder.locked(self.callback.note):
            self.claim()
            self._write_page()
            _ = evaluator.data  # an image that cannot be read is found before hours are spent
            shape = "x".join(map(str, self.images.shape))
            self.callback.note(f"{self.images.name}: {len(self.images)} images of {shape}")
            self.callback.note(f"live report: {self.folder.report()}")
            trainer = self.trainer()
            teacher = self.train_teacher(trainer)
            reference, *others = self.recipe.measurements()
            sampled = teacher_predictions(self.given, teacher)
            if self.given:
                evaluator.evaluate("given", self.given.model, reference[1], self.guided)
            evaluator.evaluate(reference[0], teacher, reference[1], sampled)
            train_student = partial(self.train_student, trainer)
            for link, student in distill_chain(teacher, self.recipe.distill.links(), train_student):
                for name, steps in others:
                    if steps == link.steps and name == "student":
                        evaluator.evaluate(name, student, steps)
                    elif steps == link.steps:
                        method = "ddim" if name == "teacher" else "dpmpp"
                        evaluator.evaluate(name, teacher, steps, sampled, method)
            self._write_page()
            return list(self.folder.read("evaluations"))

    def prepare(self) -> None:
        """Find every mistake that can be found before hours are spent; nothing is written."""
        if rule := self.recipe.distill.stop:
            self.images.split(rule.held_out, self.recipe.seed)
        check_options(self.recipe, self.given.model if self.given else None)
        if self.given:
            checks.check_data(self.recipe, self.given.model, self.images)
            self._check_teacher(self.given.model)
            start = student_form(self.recipe, self.given.model)
        else:
            start = untrained(self.recipe, self.images.shape, self.images.classes, self.images.name).denoiser
        weighting = WEIGHTINGS[self.recipe.distill.weighting]
        check_weighting(start.schedule, weighting, self.recipe.distill.counts()[-1])
        checks.check_folder(self.recipe, self.folder, self.distributed)
        trained = self.recipe.model_names()[0 if self._trains_teacher else 1 :]
        checks.check_trainings(self.recipe, self.folder, trained, self.distributed)

    def claim(self) -> None:
        """Make the folder this run's own; it is locked meanwhile."""
        checks.check_folder(self.recipe, self.folder, self.distributed)
        self.distributed.on_main_process(lambda: self.folder.write_recipe(write_recipe(self.recipe)))

    def evaluator(self) -> Evaluator:
        """What measures the models."""
        measures = instruments(self.recipe, self.images)
        return Evaluator(
            self.recipe, self.images, measures, self.folder, self.callback, self.distributed, self.conditions
        )

    @property
    def _trains_teacher(self) -> bool:
        """Whether its teacher is trained: from nothing, or in stage 0."""
        return self.given is None or needs_stage_0(self.recipe, self.given.model)

    @cached_property
    def guided(self) -> DenoiserProtocol | None:
        """The given teacher's predictions as its student shall learn them; None where a teacher is trained."""
        return guided_predictions(self.recipe, self.given, self.images, self.distributed.device) if self.given else None

    @cached_property
    def conditions(self) -> RunConditions:
        """What the networks are told of each example."""
        given = self.given.model if self.given else None
        return RunConditions(self.recipe, self.images, given, self.folder, self.callback, self.distributed)

    def trainer(self) -> StageTrainer:
        """What trains the networks on what they see: the images, or their latents, which are encoded here once."""
        examples = self.images
        if self.given and (autoencoder := self.given.model.autoencoder):
            folder, text = self.folder.latents(), self.given.model.text
            framed = text is not None and text.takes_sizes
            share = partial(encode, self.images, autoencoder, folder, framed=framed)
            if absent := self.distributed.on_main_process(lambda: begin_latents(self.images, folder, framed=framed)):
                self.callback.note(f"{self.images.name}: {len(self.images)} images are encoded once (shards: {absent})")
                with at_work(autoencoder.network, self.distributed.device):
                    self.distributed.on_every_process(share)
            examples = open_latents(self.images, folder, framed=framed)
        return StageTrainer(self.recipe, examples, self.folder, self.callback, self.distributed, self.conditions)

    def train_teacher(self, trainer: StageTrainer) -> Model:
        """The trained teacher, or the given one in a form that can be halved."""
        if self.given is None or self.guided is None:
            return trainer.fit(teacher_stage(self.recipe, self.images))
        model = replace(self.given.model, data=self.images.name, lora=None)
        if not self._trains_teacher:
            return trainer.keep("teacher", unconverted(self.recipe, model))
        guided = self.guided
        trained_before = self.distributed.on_main_process(self.folder.model("teacher").exists)
        stage = conversion_stage(self.recipe, model, guided, self.images)
        self.callback.note(f"stage 0: {form_in_words(stage.model.denoiser)}")
        teacher = trainer.fit(stage)
        if not trained_before:
            self.distributed.on_main_process(lambda: self._report_conversion(trainer, teacher, guided))
        return teacher

    def train_student(self, trainer: StageTrainer, number: int, link: Stage, teacher: Model) -> Model:
        """The student of one stage, numbered from 1."""
        frozen = teacher_predictions(self.given, teacher) if number == 1 else teacher.denoiser
        base = self.given.model.denoiser if self.given else None
        return trainer.fit(student_stage(self.recipe, number, link, teacher, frozen, self.images.name, base))

    def _write_page(self) -> None:
        """Write report.html as far as the run has come."""
        self.distributed.on_main_process(lambda: write_report(self.folder))

    def _check_teacher(self, model: Model) -> None:
        """Refuse a teacher whose output the data contradict, unless it is trusted."""
        if self.recipe.teacher.trust or model.steps or self.folder.model("teacher").exists():
            return
        with model.at_work(self.distributed.device):
            check = partial(check_on_images, model, self.images, self.recipe.seed)
            problem = self.distributed.on_main_process(lambda: check().problem)
        if problem:
            raise UserError(f"{self.recipe.teacher.model}: {problem} (or take it with --set teacher.trust=true)")

    def _report_conversion(self, trainer: StageTrainer, converted: Model, teacher: DenoiserProtocol) -> None:
        """How near stage 0 came to the given teacher, by the log-SNR and by the guidance scale, where one is drawn."""
        assert self.given is not None
        size, device = min(512, len(self.images)), self.distributed.device
        batch = next(trainer.batches(trainer.images, size, HELD_OUT_NOISE)(0, 1, slice(size)))
        x, eps, u = batch["x"].to(device), batch["eps"].to(device), batch["u"]
        condition = self.conditions(converted)({**batch, "labels": batch["labels"].to(device)})
        with converted.at_work(device), self.given.model.at_work(device):
            errors = prediction_errors(converted.denoiser, teacher, x, eps, u, **condition)
        found = {"conversion": rms_by_interval(errors, converted.denoiser.schedule.log_snr(1 - u), BANDS)}
        if dial := self.conditions.guidance:
            found["conversion_by_guidance"] = rms_by_interval(errors, batch["guidance"], guidance_edges(*dial))
        self.folder.append("metrics", {"model": "teacher", "update": converted.training["updates"], **found})
        for of, by in zip(("log-SNR", "guidance scale"), found.values(), strict=False):
            said = ", ".join(f"{difference:.3f} at {interval}" for interval, difference in by.items())
            self.callback.note(f"stage 0 differs from the given teacher by (RMS, {of}): {said}")


def open_run(recipe: Recipe, out: Path, callback: Callback, *, shards: bool = False, fresh: bool = False) -> Run:
    """Open a recipe's data and teacher, and the folder of its run.

    Args:
        recipe: what to do.
        out: the run's folder; made if missing.
        callback: called with everything that happens.
        shards: spread each network over the processes while it trains (see `progdist.training.distributed`).
        fresh: start over; an older run in the folder is renamed.

    Raises:
        UserError: data or teacher cannot be read.
    """
    distributed = Distributed(shards=shards)
    images, given = checks.open_images(recipe.data, recipe.seed), None
    if recipe.teacher.model:
        given = read_teacher(recipe.teacher.model, recipe.teacher.offset, images.shape[1:])
    folder = RunFolder(out, writes=distributed.is_main_process)
    if fresh and (aside := distributed.on_main_process(folder.move_aside)):
        callback.note(f"the older run is now {aside}")
    chosen, remarks = distributed.on_main_process(
        lambda: checks.with_precision(recipe, folder.recipe(), distributed.device)
    )
    for remark in remarks:
        callback.note(remark)
    return Run(chosen, images, given, folder, tracked(chosen, folder, callback), distributed)


def run(recipe: Recipe, out: Path, callback: Callback, *, fresh: bool = False, shards: bool = False) -> list[Record]:
    """Run a recipe in a folder, or resume it; with several processes under torchrun or accelerate.

    Arguments as in `open_run`.

    Returns:
        The evaluation records.

    Raises:
        UserError: anything the user can fix; what is written stays.
    """
    opened = open_run(recipe, out, callback, shards=shards, fresh=fresh)
    return replace(opened, callback=live(opened.folder, opened.callback)).run()
