"""The starting model and the loss of every stage: the teacher on the data, or as given; each student on its teacher."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from progdist._utils.errors import UserError
from progdist._utils.random import HELD_OUT_NOISE
from progdist.data.images import Images
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.distillation.chain import Stage
from progdist.distillation.conversion import Guided, conversion_loss, converted_form, error_by_band, needs_conversion
from progdist.distillation.progressive import stage_loss
from progdist.models.io import folder as model_folder
from progdist.models.io.diffusers_pipeline import Teacher
from progdist.models.model import Model
from progdist.models.unet import condition, unet
from progdist.recipes.recipe import Recipe, student_name
from progdist.recipes.schema import train_config
from progdist.runs.folder import RunFolder
from progdist.runs.stage_trainer import StageTrainer
from progdist.training.callbacks import Callback
from progdist.training.config import TrainConfig
from progdist.training.distributed import Distributed


def untrained(recipe: Recipe, image: tuple[int, int, int], classes: tuple[str, ...], data: str) -> Model:
    """A recipe's teacher before its training, for images (C, H, W) of the named classes of the named data.

    Raises:
        UserError: classes are wanted and there are none, or the network does not fit the images.
    """
    assert recipe.network is not None  # a recipe without one takes its teacher
    parameterization = PARAMETERIZATIONS[recipe.parameterization]
    numbers = recipe.network.model_dump(exclude={"class_conditional"})
    classes = classes if recipe.network.class_conditional else ()
    if recipe.network.class_conditional and not classes:
        raise UserError(f"network.class_conditional is set, but {data} has no labels: set it to false")
    torch.manual_seed(recipe.seed)
    network = unet(image=image, classes=len(classes), heads=parameterization.heads, **numbers)
    denoiser = Denoiser(network, recipe.noise.build(), parameterization, timesteps=recipe.noise.timesteps)
    return Model(denoiser, classes=classes, data=data)


@dataclass(frozen=True)
class RunStages:
    """The stages of one recipe in one folder."""

    recipe: Recipe
    given: Teacher | None
    images: Images
    folder: RunFolder
    callback: Callback
    distributed: Distributed

    @cached_property
    def trainer(self) -> StageTrainer:
        """Trains each network."""
        return StageTrainer(self.recipe, self.images, self.folder, self.callback, self.distributed)

    def untrained(self) -> Model:
        """The teacher before its training, or as it was given."""
        if self.given:
            return self.given.model
        images = self.images
        return untrained(self.recipe, images.shape, images.classes, images.name)

    def teacher(self) -> Model:
        """The trained teacher, or the given one in a form that can be halved."""
        if self.given:
            return self._convert(self.given)
        section = self.recipe.teacher
        objective = partial(denoising_loss, weighting=WEIGHTINGS[section.weighting])
        return self.trainer.fit("teacher", 0, self.untrained(), objective, train_config(section))

    def _convert(self, given: Teacher) -> Model:
        """The given teacher as it is, or its student of stage 0."""
        path, match = self.folder.model("teacher"), self.recipe.match
        model = replace(given.model, data=self.images.name)
        as_it_is = match.guidance is None and not needs_conversion(model.denoiser)
        if as_it_is and not self.distributed.on_main_process(path.exists):
            untouched = replace(model, training={"updates": 0, "batch": 0, "seconds": 0.0})
            self.distributed.on_main_process(lambda: model_folder.save(untouched, path))
        if self.distributed.on_main_process(path.exists):
            return self.trainer.on_device(model_folder.load(path))
        frozen = self.reference(given)
        config = train_config(match)
        student = replace(model, denoiser=converted_form(_initial_student(model.denoiser, config)))
        objective = partial(conversion_loss, teacher=frozen, weighting=WEIGHTINGS[match.weighting])
        matched = self.trainer.fit("teacher", 0, student, objective, config)
        self.distributed.on_main_process(lambda: self._report_match(matched, frozen))
        return matched

    def _report_match(self, matched: Model, frozen: DenoiserProtocol) -> None:
        """How near stage 0 came to the given teacher, in each band of the log-SNR."""
        size, device = min(512, len(self.images)), self.distributed.device
        batch = next(self.trainer.batches(self.images, size, HELD_OUT_NOISE)(0, 1, slice(size)))
        labels = condition(matched.denoiser.network, batch["labels"].to(device))
        x, eps = batch["x"].to(device), batch["eps"].to(device)
        bands = error_by_band(matched.denoiser, frozen, x, eps, batch["u"], **labels)
        self.folder.append("metrics", {"model": "teacher", "update": matched.training["updates"], "match": bands})
        section = ", ".join(f"{difference:.3f} at {band}" for band, difference in bands.items())
        self.callback.note(f"stage 0 differs from the given teacher by (RMS, log-SNR): {section}")

    def reference(self, given: Teacher) -> DenoiserProtocol:
        """The given teacher's predictions as its student shall learn them: guided, and clipped if its sampler clips."""
        frozen: DenoiserProtocol = given.model.denoiser.to(self.distributed.device).requires_grad_(False)
        none = null_class(self.recipe, given.model, self.images)
        if self.recipe.match.guidance is not None and none is not None:
            frozen = Guided(given.model.denoiser, self.recipe.match.guidance, none)
        return given.limited(frozen)

    def as_sampled(self, teacher: Model) -> DenoiserProtocol:
        """The predictions of the run's teacher, clipped as its sampler clips them if no stage 0 has learned that."""
        frozen = _frozen(teacher, self.distributed.device)
        return self.given.limited(frozen) if self.given and teacher.training["updates"] == 0 else frozen

    def student(self, number: int, stage: Stage, teacher: Model) -> Model:
        """The student of one stage, begun from its teacher's weights."""
        frozen = self.as_sampled(teacher) if number == 1 else _frozen(teacher, self.distributed.device)
        objective = stage_loss(frozen, stage, WEIGHTINGS[self.recipe.distill.weighting])
        config, lineage = self.recipe.distill.plan(stage), (*teacher.lineage, stage.steps * stage.substeps)
        student = replace(
            teacher, denoiser=_initial_student(teacher.denoiser, config), steps=(stage.steps,), lineage=lineage
        )
        model = replace(student, data=self.images.name, training={})
        return self.trainer.fit(student_name(stage.steps), number, model, objective, config)


def null_class(recipe: Recipe, model: Model, images: Images) -> int | None:
    """The class that stands for none where guidance is taken in from a model; None without guidance.

    Raises:
        UserError: it is not one of the model's, or none is named and each of the model's classes is one of the data's.
    """
    if recipe.match.guidance is None:
        return None
    known, named = len(model.classes), recipe.match.null_class
    none = named if named is not None else known - 1
    if not 0 <= none < known:
        raise UserError(f"guidance needs a class that stands for none: {none} is not one of the model's")
    if named is None and known <= len(images.classes):
        raise UserError(
            f"guidance needs a class that stands for none, and all {known} classes of the teacher are those of "
            f"{images.name}: name it with --set match.null_class=N"
        )
    return none


def _frozen(model: Model, device: torch.device) -> Denoiser:
    return model.denoiser.to(device).requires_grad_(False)


def _initial_student(teacher: Denoiser, config: TrainConfig) -> Denoiser:
    """Where a student begins: a copy of its teacher, or the teacher itself, whose weights a low-rank student shares."""
    return teacher if config.lora_rank else teacher.with_network(copy.deepcopy(teacher.network))
