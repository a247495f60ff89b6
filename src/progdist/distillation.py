"""The engine: convert a teacher if necessary (stage 0), then train a chain of students, each on the one before.

A run (`progdist.runs.run`) is this engine with a folder, and `progdist.distill` (`progdist.api.distill`) without one.
A `Plan` says what is distilled and how; `Hooks` find finished models, keep new ones, and observe the training.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.names import Bits
from progdist._utils.random import HELD_OUT_NOISE, position_seed, seeded
from progdist._utils.signals import SHUTDOWN
from progdist._utils.words import any_of, counted
from progdist.compute.cuda_graphs import accelerated
from progdist.compute.placement import at_work
from progdist.compute.precision import autocast, resolve
from progdist.compute.weights import is_double
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import Weighting, check_same_schedule, check_weighting
from progdist.methods import Method
from progdist.methods.chain import Stage, stages
from progdist.methods.conversion import conversion_loss, ends_above_zero_snr, needs_conversion, student_form
from progdist.methods.guidance import Guidance, Input
from progdist.methods.method import Auxiliary, Loss
from progdist.models.conditioning import Conditions
from progdist.models.model import LoraWeights, Model
from progdist.models.networks import kind_of, network_interface, with_guidance_input
from progdist.models.quantized_base import quantized_base
from progdist.teachers.open import Teacher
from progdist.training.batches import Batch, Batches, Examples
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import Distributed
from progdist.training.early_stopping import EarlyStopping
from progdist.training.gradients import Loss as TrainingLoss
from progdist.training.gradients import on_device
from progdist.training.loop import TrainContext, train
from progdist.training.lora import adapter_weights, add_lora, load_adapter, merge_lora, with_adapter
from progdist.training.records import NotFinite
from progdist.training.state import copy_for_average

Weightings = tuple[str | Weighting, str | Weighting]
DEFAULT_WEIGHTING = "truncated_snr"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is distilled, and how."""

    chain: tuple[int, ...]  # the teacher's step count, then each student's; each divides the previous one
    stages: Mapping[int, TrainConfig]  # how to train the student of each count, in order
    conversion: TrainConfig  # how to train stage 0, if there is one
    method: Method  # what a student learns
    options: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # of the method, by the student's step count
    initial: Denoiser | None = None  # where the student of a one-stage chain starts; None for its teacher
    weightings: Weightings = (DEFAULT_WEIGHTING, DEFAULT_WEIGHTING)  # for stage 0 and the chain, by name or function
    guidance: Guidance | None = None  # one scale to distil, or a range that students take as an input
    null_class: int | None = None  # the label for no class; None to detect it
    negative: str | None = None  # the negative prompt of guidance; None for the empty one
    zero_terminal_snr: bool | None = None  # whether students' schedules end in pure noise; None as in `student_form`
    # the pipeline that the students are LoRA adapters for, as given; None for whole networks. They keep its schedule
    # and prediction type.
    lora: str | None = None
    base_bits: Bits | None = None  # bits of the frozen network that the adapters train on; None for full precision
    stop: EarlyStopping | None = None  # when a stage ends before its updates; None for never
    seed: int = 0  # of all randomness

    def __post_init__(self) -> None:
        """Raises: UserError: a weighting is given that the method does not use."""
        if not self.method.weighted and self.weightings[1] != DEFAULT_WEIGHTING:
            raise UserError(f"weighting has no effect on students of method {self.method.name}: remove it")

    @property
    def links(self) -> list[Stage]:
        """The stages of the chain."""
        return stages(self.chain)

    def method_of(self, steps: int) -> Method:
        """The method of the student of this many steps, with its options."""
        return self.method.configured(self.options.get(steps, {}))

    def guides(self, teacher: Model) -> bool:
        """Whether the teacher is guided by two evaluations; one with a guidance input needs only one."""
        return self.guidance is not None and not teacher.takes_guidance

    def learned(self, teacher: Model) -> Guidance | None:
        """The guidance that students learn; for a network with a guidance input, the requested one or its default."""
        if not teacher.takes_guidance:
            return teacher.guidance if self.guidance is None else self.guidance
        guidance = self.guidance or teacher.guidance
        if isinstance(guidance, Input):
            return guidance
        scale = guidance.scale if guidance else teacher.scale(None)
        assert scale is not None  # a network with a guidance input has a default
        return Input(scale, scale)

    def form(self, teacher: Model) -> Denoiser:
        """The teacher's network with the schedule and the prediction type of its students."""
        if self.lora is not None:
            return teacher.denoiser
        return student_form(
            teacher.denoiser, guided=self.guidance is not None, zero_terminal_snr=self.zero_terminal_snr
        )

    def converts(self, teacher: Model) -> bool:
        """Whether there is a stage 0: the teacher is guided, or its students have another form."""
        return self.guides(teacher) or needs_conversion(teacher.denoiser, self.form(teacher))

    def check(self, teacher: Model) -> None:
        """Refuse a plan that does not suit a teacher, or has no effect on it, with a UserError."""
        network = teacher.denoiser.network
        if teacher.steps and self.chain[0] not in teacher.steps:
            raise UserError(
                f"the teacher was distilled for {any_of(teacher.steps, 'step')}, but the chain starts at "
                f"{self.chain[0]}: start the chain there"
            )
        if self.guidance is not None:
            if isinstance(teacher.guidance, Input):
                raise UserError("the teacher takes a guidance scale, and so will its students: remove guidance")
            if teacher.steps:
                raise UserError("guidance requires a teacher for all times, not one distilled to a few: remove it")
            foldered = kind_of(network) or teacher.conditioning.takes_prompts
            if isinstance(self.guidance, Input) and foldered and not teacher.accepts_guidance:
                raise UserError(
                    f"a range of guidance requires a pipeline with a guidance input, and that of a "
                    f"{type(network).__name__} has none: give a single scale"
                )
        if self.negative is not None and teacher.takes_guidance:
            raise UserError("conversion.negative has no effect on a teacher with a guidance input: remove it")
        if self.zero_terminal_snr is not None:
            if teacher.steps:
                raise UserError("zero_terminal_snr has no effect on a distilled teacher: remove it")
            if not ends_above_zero_snr(teacher.denoiser.schedule):
                raise UserError("zero_terminal_snr applies only to a schedule that ends above zero SNR: remove it")
        for link in self.links:
            self.method_of(link.steps)
        form = self.form(teacher)
        if self.initial is not None:
            _check_initial(self.initial, form, self.links)
        for weighting in self.weightings[0 if self.converts(teacher) else 1 :]:
            check_weighting(weighting, form.schedule, form.parameterization)
        _check_first_time(teacher.denoiser, self.chain)


class Hooks:
    """What a run adds to the engine; the default finds, keeps and shows nothing."""

    def find(self, name: str) -> Model | None:
        """A finished model, or None."""
        return None

    def keep(self, name: str, model: Model) -> Model:
        """Keep a finished model, and return the one to continue with."""
        return model

    def checkpoints(self, name: str) -> Checkpoints | None:
        """The checkpoints of a model's training."""
        return None

    def begin(self, name: str, config: TrainConfig) -> None:
        """Called when the training of a model starts, or resumes from its latest checkpoint."""

    def progress(self, name: str, progress: Progress) -> None:
        """Called about a thousand times during training."""

    def end(self, name: str, *, finished: bool) -> None:
        """Called when the training of a model ended, or was stopped by a signal or an error."""

    def record(self, name: str, update: int, **numbers: Any) -> None:  # noqa: ANN401
        """Record numbers of a model's training."""

    def held_out_losses(self, name: str) -> list[float]:
        """The losses recorded before the training resumed."""
        return []

    def note(self, text: str) -> None:
        """A message for the user."""

    def remedy(self, name: str) -> str:
        """What to do if a model's training does not stay finite."""
        return ""


@dataclass(frozen=True)
class Training:
    """The training of one model."""

    name: str  # of the model
    number: int  # its position, 0 for the teacher or stage 0; all randomness depends on it
    model: Model  # the model to train, as it starts
    loss: Loss  # its training loss
    config: TrainConfig  # how to train it
    dropout: bool = False  # whether the network's dropout is on
    method: Method | None = None  # a student's; None for a teacher or stage 0
    teacher: Denoiser | None = None  # the frozen network that the loss calls, if any
    full: nn.Module | None = None  # the full-precision network of the adapters; None if they train on it


@dataclass(frozen=True)
class Trainer:
    """Trains models on one set of examples."""

    examples: Examples  # what the networks see
    conditions: Callable[[Model], Conditions]  # a model -> the conditions of its network for a batch of them
    hooks: Hooks  # find, keep and observe
    distributed: Distributed  # the processes
    seed: int = 0  # of all randomness
    guidance: Input | None = None  # the range of scales to draw from for each example; None for none
    stop: EarlyStopping | None = None  # when students end early
    options: Mapping[str, Any] = field(default_factory=dict)  # further options of `Batches`: flip, workers

    def fit(self, training: Training) -> Model:
        """The trained model, or one that was already finished; NotFinite names the model and its last checkpoint."""
        name, config, model, hooks = training.name, training.config, training.model, self.hooks
        if finished := hooks.find(name):
            return finished
        seed, network = position_seed(self.seed, training.number), model.denoiser.network
        adapted = add_lora(network, config.lora_rank, seed) if config.lora_rank else None
        if adapted is not None and model.lora and model.lora.weights:
            load_adapter(adapted, model.lora.weights)
        learning = adapted or network
        method = training.method
        average = copy_for_average(learning).eval() if method and method.self_taught and config.ema else None
        examples = self.examples if training.number == 0 else self.held_out[0]
        batches = self.batch(examples, config.batch, training.number, method.noises if method else 0)
        checkpoints = hooks.checkpoints(name)
        hooks.begin(name, config)
        finished = False
        try:
            with self._at_work(training):
                auxiliaries = self._auxiliaries(training, batches)
                others = {name: each.network for name, each in auxiliaries.items()}
                loss = _loss_of_batch(training, self.conditions(model), average, others)
                result = train(
                    learning,
                    loss,
                    batches,
                    config,
                    TrainContext(
                        self.distributed.processes,
                        seed,
                        self.distributed.shards,
                        checkpoints,
                        observe=partial(hooks.progress, name),
                        stop=self._stop(training, loss),
                    ),
                    average=average,
                    auxiliaries={name: (each.network, config_of(each, config)) for name, each in auxiliaries.items()},
                    dropout=training.dropout,
                )
            finished = True
        except NotFinite as error:
            raise NotFinite(f"{name}: {error}{hooks.remedy(name)}") from error
        finally:
            hooks.end(name, finished=finished)
        network = result.network.cpu()
        lora = replace(model.lora, weights=adapter_weights(network)) if model.lora else None
        numbers = {
            "updates": result.updates,
            **({"skipped": result.skipped} if result.skipped else {}),
            "batch": config.batch,
            "seconds": round(result.seconds, 3),
            "precision": resolve(config.precision, self.distributed.device),
            **({"options": asdict(method.options)} if method and method.options else {}),
        }
        denoiser = model.denoiser.with_network(_whole(network, training).eval())
        kept = hooks.keep(name, replace(model, denoiser=denoiser, training=numbers, lora=lora))
        if checkpoints:
            checkpoints.clear()
        SHUTDOWN.stop_if_requested()  # a signal during the last update
        return kept

    def _at_work(self, training: Training) -> ExitStack:
        """Move frozen networks to the device for the training, in the precision of the model.

        These are the network that the loss calls, and the one that a low-rank student shares its weights with.
        """
        shared = training.model.denoiser.network if training.config.lora_rank else None
        stack = ExitStack()
        frozen = training.teacher.network if training.teacher else None
        for network in (frozen, shared):
            if network is not None:
                stack.enter_context(at_work(network, self.distributed.device, training.config.precision))
        return stack

    def _auxiliaries(self, training: Training, batches: Batches) -> dict[str, Auxiliary]:
        """The networks that the method trains beside the student, on the device, as they start."""
        device, method = self.distributed.device, training.method
        if method is None or method.auxiliaries is None or training.teacher is None:
            return {}
        batch = on_device(next(batches(0, 1, slice(min(2, batches.size)))), device)
        double = is_double(training.teacher.network)
        condition = condition_parts(self.conditions(training.model)(batch), double)
        with seeded(position_seed(self.seed, training.number, AUXILIARIES)):
            made = method.auxiliaries(method.options, training.teacher, latent_parts(batch, double)[0], condition)
        for each in made.values():
            each.network.to(device)
        return dict(made)

    def batch(self, examples: Examples, size: int, number: int, noises: int = 0) -> Batches:
        """The batches for a training's position."""
        draws = {"guidance": self.guidance.draw} if self.guidance else {}
        return Batches(examples, size, self.seed, number, draws=draws, noises=noises, **self.options)

    @cached_property
    def held_out(self) -> tuple[Examples, Examples | None]:
        """The examples that students train on, and those that the stopping rule measures on (None without a rule)."""
        return self.examples.split(self.stop.held_out, self.seed) if self.stop else (self.examples, None)  # pyright: ignore

    def _stop(self, training: Training, loss: TrainingLoss) -> Callable[[nn.Module, int], bool]:
        """Whether to stop after an update; every measurement and the decision are recorded."""
        name, number, config, rule, held = training.name, training.number, training.config, self.stop, self.held_out[1]
        if number == 0 or rule is None or held is None:
            return lambda network, update: False
        size = min(config.batch, len(held))
        noises = training.method.noises if training.method else 0
        same = list(self.batch(held, size, HELD_OUT_NOISE + number, noises)(0, len(held) // size, slice(size)))
        losses = self.hooks.held_out_losses(name)

        def stop(network: nn.Module, update: int) -> bool:
            return update % rule.every == 0 and measured(network, update)

        def measured(network: nn.Module, update: int) -> bool:
            losses.append(self._mean_loss(network, loss, same, config))
            numbers: dict[str, Any] = {"held_out_loss": losses[-1]}
            converged = rule.reached(losses)
            if averages := rule.averages(losses):
                numbers |= {"average_before": averages[0], "average": averages[1]}
            if converged or update + rule.every > config.updates:
                numbers["decision"] = "converged" if converged else "cap"
                made = counted(update if converged else config.updates, "update")
                ends = f"converged after {made}" if converged else f"stops at its cap of {made}"
                self.hooks.note(f"{name}: {ends}")
            self.hooks.record(name, update, **numbers)
            return self.distributed.on_main_process(lambda: converged)

        return stop

    @torch.no_grad()
    def _mean_loss(
        self, network: nn.Module, loss: TrainingLoss, batches: Iterable[Batch], config: TrainConfig
    ) -> float:
        device, means = self.distributed.device, []
        for batch in batches:
            with autocast(device, config.precision):
                losses = loss(network, on_device(batch, device))
            first = losses if isinstance(losses, Tensor) else next(iter(losses.values()))
            means.append(float(first.float().mean()))
        return fmean(means)


def _whole(network: nn.Module, training: Training) -> nn.Module:
    """A trained network without adapters, which are merged into the weights in full."""
    if not training.config.lora_rank:
        return network
    if training.full is not None:
        network = with_adapter(training.full, adapter_weights(network))
    return merge_lora(network)


def config_of(auxiliary: Auxiliary, student: TrainConfig) -> TrainConfig:
    """How to train an auxiliary network beside a student: at its own constant rate, without an average."""
    beta1, beta2 = auxiliary.betas
    own = {"learning_rate": auxiliary.learning_rate, "adam_beta1": beta1, "adam_beta2": beta2}
    plain = {"ema": 0.0, "lora_rank": 0, "warmup": 0, "weight_decay": 0.0, "lr_scheduler": "constant"}
    return student.overridden(**own, **plain, optimizer="adamw")


AUXILIARIES = 1  # position of the auxiliary networks' randomness within a training's


def _loss_of_batch(
    training: Training, conditions: Conditions, average: nn.Module | None, auxiliaries: Mapping[str, nn.Module]
) -> TrainingLoss:
    """The loss as a function of the network in training and a batch; the average teaches, if there is one."""
    denoiser, method = training.model.denoiser, training.method
    double = is_double(denoiser.network)
    others = {"auxiliaries": auxiliaries} if auxiliaries else {}

    def loss(network: nn.Module, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        student = denoiser.with_network(network)
        more = dict[str, Any](others)
        if method and method.self_taught:
            more["self_teacher"] = denoiser.with_network(average or network)
        if "noises" in batch:
            more["noises"] = batch["noises"].double() if double else batch["noises"]
        x, eps = latent_parts(batch, double)
        condition = condition_parts(conditions(batch), double)
        return training.loss(student, x=x, eps=eps, u=batch["u"], **more, **condition)

    return loss


def latent_parts(batch: Batch, double: bool) -> tuple[Tensor, Tensor]:
    """The data and the noise of a batch, in float64 for a float64 network."""
    return (batch["x"].double(), batch["eps"].double()) if double else (batch["x"], batch["eps"])


def condition_parts(condition: Mapping[str, Tensor], double: bool) -> dict[str, Tensor]:
    """A condition by name, with its floats in float64 for a float64 network."""
    return {name: each.double() if double and each.is_floating_point() else each for name, each in condition.items()}


def with_guidance(
    plan: Plan, teacher: Teacher, data_classes: int = 0, notify: Callable[[str], None] = lambda text: None
) -> Teacher:
    """The teacher with what guidance leads away from, unchanged without guidance; see `Conditioning.for_guidance`."""
    if plan.guidance is None:
        return teacher
    model = teacher.model
    conditioning = model.conditioning.for_guidance(
        negative=plan.negative, null_class=plan.null_class, data_classes=data_classes, notify=notify
    )
    return replace(teacher, model=replace(model, conditioning=conditioning))


def taught_predictions(plan: Plan, teacher: Teacher, device: torch.device) -> DenoiserProtocol:
    """The teacher's predictions for its student to learn: guided, and clipped if its sampler clips."""
    model = teacher.model
    network = accelerated(model.denoiser.network, compiled=False, graphs=plan.conversion.cuda_graphs)
    predictions = model.denoiser.with_network(network)
    if plan.guides(model):
        scale = None if plan.guidance is None or isinstance(plan.guidance, Input) else plan.guidance.scale
        return teacher.limited(model.conditioning.guided(predictions, scale, device))
    return teacher.limited(predictions)


def chain_predictions(teacher: Teacher | None, converted: Model) -> DenoiserProtocol:
    """The predictions of the chain's first teacher, with its sampler's limits unless a stage 0 learned them."""
    untouched = teacher is not None and converted.training.get("updates") == 0
    return teacher.limited(converted.denoiser) if teacher and untouched else converted.denoiser


def convert(plan: Plan, teacher: Teacher, trainer: Trainer, predictions: DenoiserProtocol) -> Model:
    """The teacher in the form of its students: stage 0's student of its predictions, or itself."""
    model = replace(teacher.model, lora=None)
    full = model.denoiser.network if plan.base_bits else None
    conditioning = model.conditioning.after(plan.learned(model))
    if not plan.converts(model):
        if finished := trainer.hooks.find("teacher"):
            return finished
        untrained = {"updates": 0, "batch": 0, "seconds": 0.0}
        return trainer.hooks.keep("teacher", replace(model, conditioning=conditioning, training=untrained))
    if plan.base_bits:
        teacher = replace(teacher, model=replace(model, denoiser=_base(plan, teacher)))
        model, predictions = teacher.model, taught_predictions(plan, teacher, trainer.distributed.device)
    denoiser = _first_weights(plan.form(model), plan.conversion)
    if isinstance(plan.guidance, Input):
        network = with_guidance_input(denoiser.network, plan.guidance)
        interface = {} if network is denoiser.network else network_interface(network)  # your own network keeps its call
        denoiser = denoiser.with_parts(network=network, **interface)
    student = replace(model, denoiser=denoiser, conditioning=conditioning, lora=_no_adapters(plan), training={})
    entries = int(denoiser.num_train_timesteps) if denoiser.whole_timesteps else None
    loss = partial(conversion_loss, teacher=predictions, weighting=plan.weightings[0], entries=entries)
    return trainer.fit(Training("converted", 0, student, loss, plan.conversion, teacher=model.denoiser, full=full))


def stage_training(plan: Plan, number: int, teacher: Model, own: Teacher | None = None) -> Training:
    """The training of a stage, counted from 1, on the model before it; `own` is a teacher not trained here.

    With LoRA files the network is `own`'s throughout, or its one copy in fewer bits, held once: teacher and student
    differ only in their adapters.
    """
    stage = plan.links[number - 1]
    if plan.lora is not None and own:
        teacher = _on_base(plan, teacher, own)
    config, begin, method = plan.stages[stage.steps], teacher.denoiser, plan.method_of(stage.steps)
    if plan.initial is not None:
        begin = begin.with_network(copy.deepcopy(plan.initial.network))
    elif plan.lora is not None and own:
        begin = begin.with_network(_base(plan, own).network)  # the last stage's adapters resume there
    else:
        begin = _first_weights(begin, config)
    student = replace(
        teacher,
        denoiser=begin,
        steps=(stage.steps,),
        lineage=(*teacher.lineage, stage.steps * stage.substeps),
        training={},
        lora=teacher.lora or _no_adapters(plan),
        method=method.name,
    )
    predictions = chain_predictions(own, teacher) if number == 1 else teacher.denoiser
    if isinstance(predictions, Denoiser):
        network = accelerated(predictions.network, config.compile, config.cuda_graphs)
        predictions = predictions.with_network(network)
    loss = method.stage_loss(predictions, stage, plan.weightings[1])
    full = own.model.denoiser.network if own and plan.base_bits else None
    return Training(
        f"student-{stage.steps:04d}", number, student, loss, config, method=method, teacher=teacher.denoiser, full=full
    )


def train_students(
    plan: Plan, first: Model, trainer: Trainer, own: Teacher | None = None
) -> Iterator[tuple[Stage, Model]]:
    """Every stage with its student, in order; arguments as in `stage_training`."""
    model = first
    for number, stage in enumerate(plan.links, 1):
        model = trainer.fit(stage_training(plan, number, model, own))
        yield stage, model


def _no_adapters(plan: Plan) -> LoraWeights | None:
    """A student's LoRA weights before the first training; None if its folder is to have none."""
    return None if plan.lora is None else LoraWeights(plan.lora, base_bits=plan.base_bits)


def _on_base(plan: Plan, teacher: Model, own: Teacher) -> Model:
    """The model before a stage as adapters on `own`'s network, which is held once; without any, that network."""
    network = _base(plan, own).network
    if teacher.lora and teacher.lora.weights:
        network = with_adapter(network, teacher.lora.weights)
    elif not plan.base_bits:
        return teacher
    return replace(teacher, denoiser=teacher.denoiser.with_network(network))


def _base(plan: Plan, own: Teacher) -> Denoiser:
    """The teacher whose network the LoRA adapters share, in `base_bits`."""
    denoiser = own.model.denoiser
    return denoiser.with_network(quantized_base(denoiser.network, plan.base_bits)) if plan.base_bits else denoiser


def _first_weights(teacher: Denoiser, config: TrainConfig) -> Denoiser:
    """Where a student starts: a copy of its teacher, or the teacher itself, sharing weights with a low-rank student."""
    return teacher if config.lora_rank else teacher.with_network(copy.deepcopy(teacher.network))


def _check_initial(initial: Denoiser, form: Denoiser, links: Sequence[Stage]) -> None:
    """Refuse an initial student with another network or form than the teacher's students."""
    if len(links) > 1:
        raise UserError(f"an initial student applies only to a single stage, and the chain has {len(links)}: remove it")
    check_same_schedule(initial, form)
    if initial.parameterization.name != form.parameterization.name:
        raise UserError(
            f"the initial student predicts {initial.parameterization.name}, but the teacher's students predict "
            f"{form.parameterization.name}: give a student of this teacher"
        )
    shapes, others = ({name: each.shape for name, each in d.network.state_dict().items()} for d in (initial, form))
    if shapes != others:
        raise UserError("the initial student has another network than the teacher: give a student of this teacher")


def _check_first_time(teacher: Denoiser, chain: Sequence[int]) -> None:
    """Refuse a chain whose first teacher is called before the network's first timestep, 0."""
    first = float(teacher.timestep(torch.tensor(1 / chain[0], dtype=torch.float64)))
    if teacher.offset > 0 and first < -1e-6:
        count = int(teacher.num_train_timesteps)
        raise UserError(
            f"chain starts with {counted(chain[0], 'step')}, which call the network at timestep {first:.2g}, but its "
            f"own are 0 to {count - 1}: start with {count} or fewer"
        )
