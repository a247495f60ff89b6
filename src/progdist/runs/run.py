"""Run a recipe: train or open the teacher, distil stage by stage, evaluate every model, write the report.

Each finished model and each finished evaluation stays in the run's folder, so the same command resumes where it
stopped and repeats nothing. The distillation itself is `progdist.distillation`, with the run's folder as its hooks.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from progdist._utils.errors import UserError
from progdist._utils.files import write_json
from progdist._utils.random import HELD_OUT_NOISE, seeded
from progdist._utils.signals import Interrupted, resumable
from progdist._utils.words import counted
from progdist.compute.placement import at_work
from progdist.data.latents import LatentFolder
from progdist.data.samples import is_teacher
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import denoising_loss
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.distillation import Trainer, Training, chain_predictions, convert, taught_predictions, train_students
from progdist.evaluation.record import EvaluationRecord
from progdist.methods.conversion import BANDS, form_in_words, prediction_errors, rms_by_interval
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.model import Model
from progdist.models.unet import unet
from progdist.recipes.files import write_recipe
from progdist.recipes.recipe import Recipe
from progdist.runs import checks
from progdist.runs.context import RunContext
from progdist.runs.evaluator import Evaluator, open_metrics
from progdist.runs.folder import RunFolder
from progdist.runs.hooks import RunHooks
from progdist.runs.listing import FAILED, FINISHED, STOPPED
from progdist.runs.pages.live import live
from progdist.runs.pages.report import write_report
from progdist.runs.prepared_teacher import prepared_teacher
from progdist.runs.teacher_samples import open_samples
from progdist.runs.tracking import tracked
from progdist.runs.training_images import write_training_images
from progdist.teachers.check import check_data, check_on_images
from progdist.teachers.open import Teacher, open_teacher
from progdist.teachers.prepared import Source
from progdist.training.batches import Examples
from progdist.training.callbacks import Callback
from progdist.training.distributed import Distributed

LONGEST_REASON = 300  # characters kept of why a run failed


@dataclass(frozen=True)
class Run:
    """One recipe in one folder."""

    context: RunContext

    def live(self) -> "Run":
        """The same run, with a page that is rewritten as it proceeds."""
        context = self.context
        return Run(replace(context, callback=live(context.folder, context.callback)))

    def run(self) -> list[EvaluationRecord]:
        """Make teacher, students and evaluations in order; existing ones are kept; errors as in `prepare`."""
        self.prepare()
        if self.context.fresh:
            return self._moved_aside()._carry_out()
        return self._carry_out()

    def _moved_aside(self) -> "Run":
        """The same run, after the existing one in its folder was renamed."""
        context = self.context
        if aside := context.distributed.on_main_process(
            partial(context.folder.move_aside, but_base=context.recipe.prepares_teacher)
        ):
            context.callback.note(f"the older run is now {aside}")
        return Run(replace(context, fresh=False))

    def _carry_out(self) -> list[EvaluationRecord]:
        recipe, folder, images, note = self.recipe, self.folder, self.context.images, self.context.callback.note
        with folder.locked(note), resumable(), self._page_of_a_stop():
            self.claim()
            evaluator = self.evaluator
            note(f"{images.name}: {counted(len(images), 'image')} of {'x'.join(map(str, images.shape))}")
            for line in self.context.distributed.on_main_process(images.remarks):
                note(line)
            self._make_samples()
            self.context.distributed.on_main_process(lambda: write_training_images(folder, images, recipe.seed))
            self._write_page()
            _ = evaluator.data  # finds unreadable images before hours are spent
            note(f"live report: {folder.report()}")
            trainer = self.trainer()
            first = self.train_teacher(trainer)
            reference, *others = recipe.measurements()
            teacher, predictions = first, chain_predictions(self.context.teacher, first)
            if self.context.teacher and self.context.has_stage_0:
                evaluator.evaluate("teacher", self.context.teacher.model, reference[1], self.predictions)
                evaluator.evaluate("converted", first, reference[1], predictions)
                teacher, predictions = self.context.teacher.model, self.predictions
            else:
                evaluator.evaluate("teacher", teacher, reference[1], predictions)
            for stage, student in train_students(self.context.plan, first, trainer, self.context.teacher):
                for name, steps in others:
                    if steps == stage.steps and name == "student":
                        evaluator.evaluate(name, student, steps)
                    elif steps == stage.steps:
                        method = "dpmpp" if name.endswith("_dpmpp") else "ddim"
                        evaluator.evaluate(name, teacher, steps, predictions, method)
            self._write_page()
            folder.end(FINISHED)
            return folder.evaluations()

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.context.recipe

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return self.context.folder

    def prepare(self) -> None:
        """Find mistakes before hours are spent; nothing is written, and a dry run ends here."""
        context, recipe, images = self.context, self.recipe, self.context.images
        _ = self.evaluator  # refuses what cannot be measured
        if rule := recipe.distill.stop:
            images.split(rule.held_out, recipe.seed)
        checks.check_options(recipe, context.plan, context.opened.model if context.opened else None)
        if context.opened:
            check_data(context.opened.model, images)
            _ = context.teacher  # refuses guidance without a null class or negative prompt
            self._check_predictions(context.opened.model)
        else:
            self.untrained()  # refuses missing labels
        checks.check_folder(context)
        checks.check_data_kept(context)
        checks.check_trainings(context)

    def claim(self) -> None:
        """Claim the folder for this run, under its lock."""
        checks.check_folder(self.context)
        self.context.distributed.on_main_process(self._write_beginning)

    def _write_beginning(self) -> None:
        self.folder.begin()
        self.folder.write_recipe(write_recipe(self.recipe))
        if not self.folder.data().is_file():
            write_json(self.folder.data(), self.context.images.identity())

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator of the models."""
        return Evaluator(self.context, open_metrics(self.recipe, self.context.images))

    @cached_property
    def predictions(self) -> DenoiserProtocol | None:
        """The teacher's predictions as its student learns them; None if a teacher is trained."""
        plan, teacher, device = self.context.plan, self.context.teacher, self.context.distributed.device
        return taught_predictions(plan, teacher, device) if teacher else None

    def untrained(self) -> Model:
        """The teacher before its training."""
        images = self.context.images
        return untrained(self.recipe, images.shape, images.classes, images.name)

    def trainer(self) -> Trainer:
        """The trainer of the networks on images, or on their latents, which are encoded here once."""
        context, data, plan = self.context, self.recipe.data, self.context.plan
        options = {"flip": data.flip, "workers": data.workers}
        return Trainer(
            self._examples(), context.conditions, RunHooks(context), context.distributed, plan.seed,
            context.guidance, plan.stop, options,
        )  # fmt: skip

    def _make_samples(self) -> None:
        """Make the missing samples of the teacher, if they are the data."""
        context = self.context
        if context.samples and context.teacher and self.predictions is not None:
            conditions = context.conditions(context.teacher.model)
            precision, note = self.recipe.evaluate.precision, context.callback.note
            context.samples.make(self.predictions, conditions, precision, context.distributed, note)

    def _examples(self) -> Examples:
        context, images = self.context, self.context.images
        if context.samples:
            return context.samples.examples()
        model = context.opened.model if context.opened else None
        if model is None or model.autoencoder is None:
            return images
        distributed, framed = context.distributed, model.conditioning.takes_sizes
        made_by = distributed.on_main_process(model.autoencoder.fingerprint)
        latents = LatentFolder(images, self.folder.root / "latents", framed=framed, encoder=made_by)
        if absent := distributed.on_main_process(lambda: latents.prepare(context.callback.note)):
            context.callback.note(f"{images.name}: {counted(len(images), 'image')} encoded once (shards: {absent})")
            with at_work(model.autoencoder.network, distributed.device):
                distributed.on_every_process(partial(latents.encode, model.autoencoder))
        return latents.open()

    def train_teacher(self, trainer: Trainer) -> Model:
        """The trained teacher, or the recipe's existing one, converted to the form of its students."""
        context, plan = self.context, self.context.plan
        if context.teacher is None or self.predictions is None:
            how, model = self.recipe.teacher, self.untrained()
            model = replace(model, conditioning=model.conditioning.of_data(context.images))
            loss = partial(denoising_loss, weighting=how.weighting)
            return trainer.fit(Training("teacher", 0, model, loss, how.overridden(), dropout=True))
        teacher = replace(context.teacher, model=replace(context.teacher.model, data=context.images.name))
        if not context.has_stage_0:
            return convert(plan, teacher, trainer, self.predictions)
        context.callback.note(f"stage 0: {form_in_words(plan.form(teacher.model))}")
        finished = context.distributed.on_main_process(self.folder.model("converted").exists)
        converted = convert(plan, teacher, trainer, self.predictions)
        if not finished:
            context.distributed.on_main_process(lambda: self._report_conversion(trainer, converted))
        return converted

    def _write_page(self) -> None:
        """Write report.html for the current state of the run."""
        self.context.distributed.on_main_process(lambda: write_report(self.folder))

    @contextmanager
    def _page_of_a_stop(self) -> Iterator[None]:
        """Record what ends the run early and show it on its page. An error while doing so never hides the first one."""
        try:
            yield
        except BaseException as error:
            if self.folder.writes:
                stopped = isinstance(error, Interrupted | KeyboardInterrupt)
                with suppress(OSError, UserError):
                    self.folder.end(STOPPED if stopped else FAILED, _reason(error)[:LONGEST_REASON])
                    write_report(self.folder)
            raise

    def _check_predictions(self, model: Model) -> None:
        """Refuse a teacher whose output contradicts the data, unless it is trusted."""
        context = self.context
        if self.recipe.teacher.trust or model.steps or context.samples or context.finished(context.model_names[0]):
            return
        context.callback.note("checking the teacher's output on the data")
        with model.at_work(context.distributed.device):
            check = partial(check_on_images, model, context.images, self.recipe.seed)
            problem = context.distributed.on_main_process(lambda: check().problem)
        if problem:
            raise UserError(f"{self.recipe.teacher.model}: {problem} (to use it anyway: --set teacher.trust=true)")

    def _report_conversion(self, trainer: Trainer, converted: Model) -> None:
        """Report how far stage 0 is from the teacher, by log-SNR and by guidance scale, if one is drawn."""
        context = self.context
        assert context.teacher is not None and self.predictions is not None
        size, device = min(512, len(context.images)), context.distributed.device
        batch = next(trainer.batch(trainer.examples, size, HELD_OUT_NOISE)(0, 1, slice(size)))
        x, eps, u = batch["x"].to(device), batch["eps"].to(device), batch["u"]
        condition = context.conditions(converted)({**batch, "labels": batch["labels"].to(device)})
        with converted.at_work(device), context.teacher.model.at_work(device):
            errors = prediction_errors(converted.denoiser, self.predictions, x, eps, u, **condition)
        by_interval = {"conversion": rms_by_interval(errors, converted.denoiser.schedule.log_snr(1 - u), BANDS)}
        if guidance := context.guidance:
            by_interval["conversion_by_guidance"] = rms_by_interval(errors, batch["guidance"], guidance.edges())
        record = {"model": "converted", "update": converted.training["updates"], **by_interval}
        self.folder.append("metrics", record)
        for what, intervals in zip(("log-SNR", "guidance scale"), by_interval.values(), strict=False):
            listed = ", ".join(f"{difference:.3f} at {interval}" for interval, difference in intervals.items())
            context.callback.note(f"stage 0 differs from the teacher by (RMS, {what}): {listed}")


def untrained(recipe: Recipe, image: tuple[int, int, int], classes: tuple[str, ...], data: str) -> Model:
    """A recipe's teacher before its training, for images (C, H, W) with the classes of the named data."""
    assert recipe.network is not None  # a recipe without one names its teacher
    parameterization = PARAMETERIZATIONS[recipe.parameterization]
    numbers = recipe.network.model_dump(exclude={"class_conditional"})
    classes = classes if recipe.network.class_conditional else ()
    if recipe.network.class_conditional and not classes:
        raise UserError(f"network.class_conditional is set, but {data} has no labels: set it to false")
    with seeded(recipe.seed):
        network = unet(image=image, classes=len(classes), heads=parameterization.heads, **numbers)
    noise = recipe.noise
    denoiser = Denoiser(network, noise.build(), parameterization, num_train_timesteps=noise.num_train_timesteps)
    return Model(denoiser, conditioning=Classes(classes) if classes else Conditioning(), data=data)


def open_run(
    recipe: Recipe,
    out: Path,
    callback: Callback,
    *,
    teacher: Teacher | None = None,
    shards: bool = False,
    fresh: bool = False,
    dry: bool = False,
) -> Run:
    """Open a recipe's data and teacher, and the folder of its run; nothing is written.

    Args:
        recipe: the recipe to run.
        out: the run's folder; created if missing.
        callback: called on every event.
        teacher: the recipe's teacher, if it is already open.
        shards: shard each network over the processes while it trains (see `progdist.training.distributed`).
        fresh: start over; an older run in the folder is renamed.
        dry: only `prepare` follows: if the data are not here, assume what the recipe states.
    """
    distributed, model, samples = Distributed(shards=shards), recipe.teacher.model, None
    if model and is_teacher(recipe.data.source):
        teacher = teacher or _opened(recipe, out, callback, fresh=fresh, dry=dry)
        samples = open_samples(recipe, teacher, out, distributed.device)
        images, recipe = samples.images(), samples.recipe
        teacher = replace(teacher, model=samples.model)
    else:
        images = checks.stated_images(recipe, callback.note) if dry else checks.open_images(recipe.data, recipe.seed)
        if model:
            teacher = teacher or _opened(recipe, out, callback, fresh=fresh, dry=dry)
            checks.check_encodes(teacher.model)
        images = teacher.model.conditioning.fitted(images, callback.note) if teacher else images
    teacher = teacher.for_data(images) if teacher else None
    folder = RunFolder(out, writes=distributed.is_main_process)
    kept = folder.recipe() if folder.holds_run() and not fresh else None
    resolved, remarks = distributed.on_main_process(partial(checks.with_precision, recipe, kept, distributed.device))
    for remark in remarks:
        callback.note(remark)
    tracking = tracked(resolved, folder, callback)
    return Run(RunContext(resolved, images, teacher, folder, tracking, distributed, samples, fresh=fresh))


def _opened(recipe: Recipe, out: Path, callback: Callback, *, fresh: bool, dry: bool) -> Teacher:
    """Open the recipe's teacher, prepared first if necessary."""
    how = recipe.teacher
    source = Source(str(how.model), how.loras, how.config)
    place = prepared_teacher(source, out, fresh=fresh, dry=dry, note=callback.note)
    return open_teacher(place, how.offset, how.call)


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
