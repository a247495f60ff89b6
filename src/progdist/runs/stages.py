"""The starting model, loss and configuration of every stage, as plain data that a trainer can fit.

teacher      on the data, with the denoising loss; or, where one is given that cannot be halved, its student of stage 0
student N    on the teacher of k N steps, from the teacher's weights; with `lora` from the given teacher's own weights
             and the LoRA adapters of the student before
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.compute.cuda_graphs import accelerated
from progdist.data.embeddings import Embeddings, encode_captions
from progdist.data.images import Images
from progdist.data.latents import frame_shards
from progdist.data.shards import TensorShards
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.methods.chain import Stage
from progdist.methods.conversion import conversion_loss
from progdist.methods.guidance import Guided
from progdist.methods.transitive import STAGE_LOSSES
from progdist.models.conditions import CaptionConditions, SizeConditions
from progdist.models.guidance_input import usual_scale, with_class_guidance
from progdist.models.model import Model
from progdist.models.prompts import network_arguments, takes_guidance, with_guidance_input
from progdist.models.unet import Conditions, class_conditions, unet
from progdist.recipes.from_teacher import student_form, taught_guidance
from progdist.recipes.recipe import Recipe, student_name
from progdist.recipes.training import train_config
from progdist.runs.checks import null_class
from progdist.runs.folder import RunFolder
from progdist.students.lora_file import LoraFile
from progdist.teachers.open import Teacher
from progdist.training.callbacks import Callback
from progdist.training.config import TrainConfig
from progdist.training.distributed import Distributed

StageLoss = Callable[..., Tensor]
"""(denoiser, x=, eps=, u=, **condition) -> one loss per example, (B,)."""


@dataclass(frozen=True)
class TrainingStage:
    """One training of a run.

    Attributes:
        name: of the model, its folder and its records.
        number: the place in the run, 0 for the teacher; all randomness is a function of it.
        model: the one to train, as it begins.
        loss: what it is trained on.
        config: how.
        self_taught: whether the loss also takes `self_teacher`, the average of the weights in training.
        frozen: the network that the loss asks; None where there is none.
    """

    name: str
    number: int
    model: Model
    loss: StageLoss
    config: TrainConfig
    self_taught: bool = False
    frozen: nn.Module | None = None


@dataclass(frozen=True)
class RunConditions:
    """The conditions of a run's models; captions are encoded when they are first asked for, once.

    Attributes:
        recipe: of the run.
        images: the data.
        given: the teacher to take; None where one is trained.
        folder: where the encoded captions are kept.
        callback: told before captions are encoded.
        distributed: the processes, of which one encodes.
    """

    recipe: Recipe
    images: Images
    given: Model | None
    folder: RunFolder
    callback: Callback
    distributed: Distributed

    def __call__(self, model: Model, guidance: float | None = None) -> Conditions:
        """What tells a model's network the class or caption, and the guidance scale; None for the measured one."""
        scale = self.evaluated if guidance is None else guidance
        if model.text is None:
            return class_conditions(model.denoiser.network, scale)
        conditions = CaptionConditions(self._embeddings, model.text.constants(self.images.shape)).at(scale)
        if not model.text.takes_sizes:
            return conditions
        return SizeConditions(conditions, len(self.images.classes), self._frames.__getitem__)

    @cached_property
    def _frames(self) -> TensorShards:
        """The sizes and crops of the data's images."""
        return frame_shards(self.images, self.folder.latents())

    @property
    def guidance(self) -> tuple[float, float] | None:
        """The least and the largest guidance scale that students take as an input; None where they take none."""
        guidance = taught_guidance(self.recipe, self.given) if self.given else None
        return guidance if isinstance(guidance, tuple) else None

    @property
    def evaluated(self) -> float | None:
        """The guidance scale at which models are measured; None where students take none."""
        if self.guidance is None:
            return None
        text = self.given.text if self.given else None
        usual = text.guided(self.guidance, None).usual_guidance if text else usual_scale(self.guidance)
        return usual if self.recipe.evaluate.guidance is None else self.recipe.evaluate.guidance

    @cached_property
    def _embeddings(self) -> Embeddings:
        """Those of the data's captions."""
        assert self.given is not None
        assert self.given.text is not None  # a model that takes captions has its encoders from the given one
        open_encoder = partial(self.given.text.encoder, self.distributed.device)
        captions, cache, notify = self.images.classes, self.folder.captions(), self.callback.note
        self.distributed.on_main_process(lambda: encode_captions(captions, open_encoder, cache, notify).size)
        return encode_captions(captions, open_encoder, cache, notify)


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


def teacher_stage(recipe: Recipe, images: Images) -> TrainingStage:
    """The training of a teacher from nothing."""
    section = recipe.teacher
    loss = partial(denoising_loss, weighting=WEIGHTINGS[section.weighting])
    return TrainingStage(
        "teacher", 0, untrained(recipe, images.shape, images.classes, images.name), loss, train_config(section)
    )


def conversion_stage(recipe: Recipe, given: Model, frozen: DenoiserProtocol, images: Images) -> TrainingStage:
    """Stage 0: the given model's student in a form that can be halved, on its frozen predictions."""
    config = recipe.conversion_config()
    denoiser, guidance = _initial_student(student_form(recipe, given), config), recipe.conversion.guidance
    if isinstance(guidance, tuple):
        given_network = denoiser.network
        network = with_guidance_input(given_network) if given.text else with_class_guidance(given_network, guidance)
        denoiser = denoiser.with_parts(network=network, arguments=network_arguments(network))
    text = given.text.guided(guidance, recipe.conversion.negative) if given.text else None
    null = null_class(recipe, given, images)
    null = given.null_class if null is None else null
    student = replace(given, denoiser=denoiser, text=text, lora=_untrained_lora(recipe), null_class=null)
    loss = partial(conversion_loss, teacher=frozen, weighting=WEIGHTINGS[recipe.conversion.weighting])
    return TrainingStage("teacher", 0, student, loss, config, frozen=given.denoiser.network)


def student_stage(
    recipe: Recipe, number: int, link: Stage, teacher: Model, frozen: DenoiserProtocol, data: str, base: Denoiser | None
) -> TrainingStage:
    """The training of one student, begun from its teacher's weights.

    Args:
        recipe: of the run.
        number: of the stage, from 1.
        link: the step counts.
        teacher: the model before it in the chain.
        frozen: the teacher's predictions, as its student shall learn them.
        data: the name of the data.
        base: the given teacher, whose weights a student with `lora` begins from; None where one was trained.
    """
    config, begin, target = recipe.student_config(link), teacher.denoiser, recipe.distill.target
    begin = begin.with_network(base.network) if base and recipe.lora else _initial_student(begin, config)
    student = replace(
        teacher,
        denoiser=begin,
        steps=(link.steps,),
        lineage=(*teacher.lineage, link.steps * link.substeps),
        data=data,
        training={},
        lora=teacher.lora or _untrained_lora(recipe),
        target=target,
    )
    if isinstance(frozen, Denoiser):
        frozen = frozen.with_network(accelerated(frozen.network, config.compile, config.cuda_graphs))
    loss = STAGE_LOSSES[target](frozen, link, WEIGHTINGS[recipe.distill.weighting])
    asked = teacher.denoiser.network
    return TrainingStage(student_name(link.steps), number, student, loss, config, target == "tract", frozen=asked)


def _untrained_lora(recipe: Recipe) -> LoraFile | None:
    """The LoRA weights of a student before the first training; None where its folder shall hold none."""
    return LoraFile(recipe.teacher.model) if recipe.lora is not None and recipe.teacher.model else None


def guided_predictions(recipe: Recipe, given: Teacher, images: Images, device: torch.device) -> DenoiserProtocol:
    """A given teacher's predictions as its student shall learn them: guided, and clipped if its sampler clips."""
    network = given.model.denoiser.network
    computed = accelerated(network, compiled=False, graphs=recipe.conversion.cuda_graphs)
    frozen: DenoiserProtocol = given.model.denoiser.with_network(computed)
    guidance, text, null = recipe.conversion.guidance, given.model.text, null_class(recipe, given.model, images)
    scale = None if isinstance(guidance, tuple) else guidance
    if text and guidance is not None and not takes_guidance(network):
        encoder = text.encoder(device)  # which is let go of
        frozen = Guided(frozen, encoder.unconditional(recipe.conversion.negative), scale)
    elif null is not None:
        frozen = Guided(frozen, {"class_labels": torch.tensor([null])}, scale)
    return given.limited(frozen)


def teacher_predictions(given: Teacher | None, teacher: Model) -> DenoiserProtocol:
    """The predictions of a run's teacher, clipped as its sampler clips them if no stage 0 has learned that."""
    frozen = teacher.denoiser
    return given.limited(frozen) if given and teacher.training["updates"] == 0 else frozen


def _initial_student(teacher: Denoiser, config: TrainConfig) -> Denoiser:
    """Where a student begins: a copy of its teacher, or the teacher itself, whose weights a low-rank student shares."""
    return teacher if config.lora_rank else teacher.with_network(copy.deepcopy(teacher.network))
