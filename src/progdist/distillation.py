"""The engine: a teacher is converted where it must be (stage 0), then a chain of students trained, each on the last.

    student = progdist.distill(teacher, data, chain=[64, 32, 16, 8, 4])

`progdist.distill` is this engine without a folder; a run (`progdist.runs.run`) is it with one. What is distilled and
how is a `Plan`; `Hooks` find what is finished, keep what is made, and hear of the training.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from progdist._utils.errors import UserError
from progdist._utils.random import HELD_OUT_NOISE, position_seed
from progdist.compute.cuda_graphs import accelerated
from progdist.compute.placement import at_work
from progdist.compute.precision import autocast, resolve
from progdist.data.images import split_indices
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import Weighting
from progdist.methods import METHODS, Method
from progdist.methods.chain import Stage, stages
from progdist.methods.conversion import conversion_loss, ends_above_zero_snr, needs_conversion, student_form
from progdist.methods.guidance import Guidance, Guided, Input, requested_guidance
from progdist.methods.method import Loss
from progdist.methods.progressive import check_weighting
from progdist.models.conditioning import Classes, Conditioning, Conditions, LabelConditions
from progdist.models.model import LoraWeights, Model
from progdist.models.networks import accepts_guidance, kind_of, network_interface, takes_guidance, with_guidance_input
from progdist.teachers.open import Teacher
from progdist.training.batches import Batch, Batches, Examples
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import CONVERSION_UPDATES, DEFAULTS, OF_A_WHOLE_TRAINING, TrainConfig
from progdist.training.distributed import Distributed
from progdist.training.early_stopping import EarlyStopping
from progdist.training.loop import TrainContext, on_device, train
from progdist.training.lora import adapter_weights, add_lora, load_adapter, merge_lora
from progdist.training.records import NotFinite
from progdist.training.state import copy_for_average

Weightings = tuple[str | Weighting, str | Weighting]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is distilled, and how."""

    chain: tuple[int, ...]  # the teacher's step count, then each student's; each divides the one before
    stages: Mapping[int, TrainConfig]  # how the student of each count is trained, in order
    conversion: TrainConfig  # how stage 0 is trained, where there is one
    method: Method  # what a student learns
    weightings: Weightings = ("truncated_snr", "truncated_snr")  # of stage 0 and of the chain, by name or function
    guidance: Guidance | None = None  # one scale to distil, or a range that students take as an input
    null_class: int | None = None  # the label that stands for no class; None for the last one
    negative: str | None = None  # the prompt that guidance leads away from; None for the empty one
    zero_terminal_snr: bool | None = None  # whether students' schedules end in pure noise; None as in `student_form`
    # the pipeline that the students are LoRA adapters for, as it was named; None for whole networks. They keep its
    # schedule and prediction type.
    lora: str | None = None
    stop: EarlyStopping | None = None  # when a stage ends before its updates; None for never
    seed: int = 0  # of all randomness

    @property
    def links(self) -> list[Stage]:
        """The stages of the chain."""
        return stages(self.chain)

    def guides(self, teacher: Model) -> bool:
        """Whether the teacher is guided by two evaluations; one that takes a scale itself needs one."""
        return self.guidance is not None and not takes_guidance(teacher.denoiser.network)

    def learned(self, teacher: Model) -> Guidance | None:
        """What students learn of guidance; where the network takes a scale itself, the requested one or its default."""
        if not takes_guidance(teacher.denoiser.network):
            return teacher.guidance if self.guidance is None else self.guidance
        guidance = self.guidance or teacher.guidance
        if isinstance(guidance, Input):
            return guidance
        scale = guidance.scale if guidance else teacher.scale(None)
        assert scale is not None  # a network that takes a scale has a default
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
        """Refuse a plan that does not suit a teacher, or has no effect on it: a UserError says what is expected."""
        network = teacher.denoiser.network
        if self.guidance is not None:
            if isinstance(teacher.guidance, Input):
                raise UserError("the teacher takes a guidance scale, and so will its students: remove guidance")
            if teacher.steps:
                raise UserError("guidance is distilled in at all times, and a distilled teacher knows only its own")
            if isinstance(self.guidance, Input) and kind_of(network) and not accepts_guidance(network):
                raise UserError(
                    f"a {type(network).__name__} takes no guidance scale in its stock pipeline, so its students have "
                    "no range: give a single scale"
                )
        if self.negative is not None and takes_guidance(network):
            raise UserError("conversion.negative has no effect on a teacher that takes the guidance scale itself")
        if self.zero_terminal_snr is not None:
            if teacher.steps:
                raise UserError("zero_terminal_snr has no effect on a distilled teacher: remove it")
            if not ends_above_zero_snr(teacher.denoiser.schedule):
                raise UserError("zero_terminal_snr applies only to a schedule that ends above zero SNR: remove it")
        check_weighting(self.form(teacher).schedule, self.weightings[1], self.chain[-1])


class Hooks:
    """What a run adds to the engine; by itself nothing is found, kept or shown."""

    def find(self, name: str) -> Model | None:
        """A model that is finished."""
        return None

    def keep(self, name: str, model: Model) -> Model:
        """Keep a finished model; it goes on as the one that is returned."""
        return model

    def checkpoints(self, name: str) -> Checkpoints | None:
        """Those of a model's training."""
        return None

    def begin(self, name: str, config: TrainConfig) -> None:
        """The training of a model begins, or goes on from its latest checkpoint."""

    def progress(self, name: str, progress: Progress) -> None:
        """About a thousand times in a training."""

    def end(self, name: str) -> None:
        """The training of a model ended."""

    def record(self, name: str, update: int, **numbers: Any) -> None:  # noqa: ANN401
        """Keep numbers of a model's training."""

    def held_out_losses(self, name: str) -> list[float]:
        """Those that were kept before the training went on."""
        return []

    def note(self, text: str) -> None:
        """A message for the user."""

    def remedy(self, name: str) -> str:
        """What to do where a model's training does not stay finite."""
        return ""


@dataclass(frozen=True)
class Training:
    """The training of one model."""

    name: str  # of the model
    number: int  # its place, 0 for the teacher or stage 0; all randomness is a function of it
    model: Model  # the one to train, as it begins
    loss: Loss  # what it is trained on
    config: TrainConfig  # how
    dropout: bool = False  # whether the network's dropout is at work
    self_taught: bool = False  # whether the loss also takes `self_teacher`, the average of the weights in training
    frozen: nn.Module | None = None  # the network that the loss asks; None where there is none


@dataclass(frozen=True)
class Trainer:
    """Trains models on one set of examples."""

    examples: Examples  # what the networks see
    conditions: Callable[[Model], Conditions]  # the conditioning inputs of a model's network for a batch of them
    hooks: Hooks  # find, keep and hear
    distributed: Distributed  # the processes
    seed: int = 0  # of all randomness
    guidance: Input | None = None  # the range of scales that is drawn for each example; None for none
    stop: EarlyStopping | None = None  # when students end early
    options: Mapping[str, Any] = field(default_factory=dict)  # further ones of `Batches`: flip, workers

    def fit(self, training: Training) -> Model:
        """The trained model, or the one that is finished already; NotFinite names the model and its last checkpoint."""
        name, config, model, hooks = training.name, training.config, training.model, self.hooks
        if finished := hooks.find(name):
            return finished
        seed, network = position_seed(self.seed, training.number), model.denoiser.network
        adapted = add_lora(network, config.lora_rank, seed) if config.lora_rank else None
        if adapted is not None and model.lora and model.lora.weights:
            load_adapter(adapted, model.lora.weights)
        learning = adapted or network
        average = copy_for_average(learning).eval() if training.self_taught and config.ema else None
        loss = _loss_of_batch(training, self.conditions(model), average)
        examples = self.examples if training.number == 0 else self.held_out[0]
        checkpoints = hooks.checkpoints(name)
        hooks.begin(name, config)
        try:
            with self._at_work(training):
                result = train(
                    learning,
                    loss,
                    self.batch(examples, config.batch, training.number),
                    config,
                    TrainContext(
                        self.distributed.accelerator,
                        seed,
                        self.distributed.shards,
                        checkpoints,
                        observe=partial(hooks.progress, name),
                        stop=self._stop(training, loss),
                    ),
                    average=average,
                    dropout=training.dropout,
                )
        except NotFinite as error:
            raise NotFinite(f"{name}: {error}{hooks.remedy(name)}") from error
        finally:
            hooks.end(name)
        network = result.network.cpu()
        lora = replace(model.lora, weights=adapter_weights(network)) if model.lora else None
        numbers = {
            "updates": result.updates,
            "batch": config.batch,
            "seconds": round(result.seconds, 3),
            "precision": resolve(config.precision, self.distributed.device),
        }
        denoiser = model.denoiser.with_network((merge_lora(network) if adapted else network).eval())
        kept = hooks.keep(name, replace(model, denoiser=denoiser, training=numbers, lora=lora))
        if checkpoints:
            checkpoints.clear()
        return kept

    def _at_work(self, training: Training) -> ExitStack:
        """What is frozen on the device meanwhile, in the precision in which the model trains.

        It is the network that the loss asks, and the one that a low-rank student shares its weights with.
        """
        shared = training.model.denoiser.network if training.config.lora_rank else None
        stack = ExitStack()
        for network in (training.frozen, shared):
            if network is not None:
                stack.enter_context(at_work(network, self.distributed.device, training.config.precision))
        return stack

    def batch(self, examples: Examples, size: int, number: int) -> Batches:
        """The batches of one place among the trainings."""
        draws = {"guidance": self.guidance.draw} if self.guidance else {}
        return Batches(examples, size, self.seed, number, draws=draws, **self.options)

    @cached_property
    def held_out(self) -> tuple[Examples, Examples | None]:
        """The examples that students train on, and those that the stopping rule measures on (None without a rule)."""
        return self.examples.split(self.stop.held_out, self.seed) if self.stop else (self.examples, None)  # pyright: ignore

    def _stop(self, training: Training, loss: Callable[..., Tensor]) -> Callable[[nn.Module, int], bool]:
        """Whether to end after an update; every measurement and the decision are recorded."""
        name, number, config, rule, held = training.name, training.number, training.config, self.stop, self.held_out[1]
        if number == 0 or rule is None or held is None:
            return lambda network, update: False
        size = min(config.batch, len(held))
        same = list(self.batch(held, size, HELD_OUT_NOISE + number)(0, len(held) // size, slice(size)))
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
                ends = f"converged after {update}" if converged else f"stops at its cap of {config.updates}"
                self.hooks.note(f"{name}: {ends} updates")
            self.hooks.record(name, update, **numbers)
            return self.distributed.on_main_process(lambda: converged)

        return stop

    @torch.no_grad()
    def _mean_loss(
        self, network: nn.Module, loss: Callable[..., Tensor], batches: Iterable[Batch], config: TrainConfig
    ) -> float:
        device, means = self.distributed.device, []
        for batch in batches:
            with autocast(device, config.precision):
                means.append(float(loss(network, on_device(batch, device)).float().mean()))
        return fmean(means)


def _loss_of_batch(training: Training, conditions: Conditions, average: nn.Module | None) -> Callable[..., Tensor]:
    """The loss as a function of the network in training and a batch; the average teaches, if there is one."""
    denoiser = training.model.denoiser

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        student = denoiser.with_network(network)
        itself = {"self_teacher": denoiser.with_network(average or network)} if training.self_taught else {}
        return training.loss(student, x=batch["x"], eps=batch["eps"], u=batch["u"], **itself, **conditions(batch))

    return loss


def with_guidance(plan: Plan, teacher: Teacher, data_classes: int = 0) -> Teacher:
    """The teacher with what guidance leads away from, itself without; errors as of `Conditioning.for_guidance`."""
    if plan.guidance is None:
        return teacher
    model = teacher.model
    conditioning = model.conditioning.for_guidance(
        negative=plan.negative, null_class=plan.null_class, data_classes=data_classes
    )
    return replace(teacher, model=replace(model, conditioning=conditioning))


def taught_predictions(plan: Plan, teacher: Teacher, device: torch.device) -> DenoiserProtocol:
    """A teacher's predictions as its student shall learn them: guided, and clipped if its sampler clips."""
    model = teacher.model
    network = accelerated(model.denoiser.network, compiled=False, graphs=plan.conversion.cuda_graphs)
    predictions: DenoiserProtocol = model.denoiser.with_network(network)
    if plan.guides(model):
        scale = None if plan.guidance is None or isinstance(plan.guidance, Input) else plan.guidance.scale
        predictions = Guided(predictions, model.conditioning.unconditional(device), scale)
    return teacher.limited(predictions)


def chain_predictions(teacher: Teacher | None, converted: Model) -> DenoiserProtocol:
    """The predictions of the chain's first teacher, limited as by its sampler where no stage 0 learned it."""
    untouched = teacher is not None and converted.training.get("updates") == 0
    return teacher.limited(converted.denoiser) if teacher and untouched else converted.denoiser


def convert(plan: Plan, teacher: Teacher, trainer: Trainer, predictions: DenoiserProtocol) -> Model:
    """The teacher in the form that its students have: stage 0's student of its predictions, or itself."""
    model = replace(teacher.model, lora=None)
    conditioning = model.conditioning.after(plan.learned(model))
    if not plan.converts(model):
        if finished := trainer.hooks.find("teacher"):
            return finished
        untrained = {"updates": 0, "batch": 0, "seconds": 0.0}
        return trainer.hooks.keep("teacher", replace(model, conditioning=conditioning, training=untrained))
    denoiser = _first_weights(plan.form(model), plan.conversion)
    if isinstance(plan.guidance, Input):
        network = with_guidance_input(denoiser.network, plan.guidance)
        interface = {} if network is denoiser.network else network_interface(network)  # your own is called as before
        denoiser = denoiser.with_parts(network=network, **interface)
    student = replace(model, denoiser=denoiser, conditioning=conditioning, lora=_no_adapters(plan), training={})
    loss = partial(conversion_loss, teacher=predictions, weighting=plan.weightings[0])
    return trainer.fit(Training("converted", 0, student, loss, plan.conversion, frozen=model.denoiser.network))


def stage_training(plan: Plan, number: int, teacher: Model, own: Teacher | None = None) -> Training:
    """The training of a stage, which counts from 1, on the model before it; `own` is a teacher not trained here."""
    stage = plan.links[number - 1]
    config, begin = plan.stages[stage.steps], teacher.denoiser
    if plan.lora is not None and own:
        begin = begin.with_network(own.model.denoiser.network)  # the adapters of the last stage go on from there
    else:
        begin = _first_weights(begin, config)
    student = replace(
        teacher,
        denoiser=begin,
        steps=(stage.steps,),
        lineage=(*teacher.lineage, stage.steps * stage.substeps),
        training={},
        lora=teacher.lora or _no_adapters(plan),
        method=plan.method.name,
    )
    predictions = chain_predictions(own, teacher) if number == 1 else teacher.denoiser
    if isinstance(predictions, Denoiser):
        network = accelerated(predictions.network, config.compile, config.cuda_graphs)
        predictions = predictions.with_network(network)
    loss = plan.method.stage_loss(predictions, stage, plan.weightings[1])
    name, self_taught = f"student-{stage.steps:04d}", plan.method.self_taught
    return Training(name, number, student, loss, config, self_taught=self_taught, frozen=teacher.denoiser.network)


def train_students(
    plan: Plan, first: Model, trainer: Trainer, own: Teacher | None = None
) -> Iterator[tuple[Stage, Model]]:
    """Every stage with its student, in order; arguments as of `stage_training`."""
    model = first
    for number, stage in enumerate(plan.links, 1):
        model = trainer.fit(stage_training(plan, number, model, own))
        yield stage, model


def _no_adapters(plan: Plan) -> LoraWeights | None:
    """The LoRA weights of a student before the first training; None where its folder shall hold none."""
    return None if plan.lora is None else LoraWeights(plan.lora)


def _first_weights(teacher: Denoiser, config: TrainConfig) -> Denoiser:
    """Where a student begins: a copy of its teacher, or the teacher itself, whose weights a low-rank student shares."""
    return teacher if config.lora_rank else teacher.with_network(copy.deepcopy(teacher.network))


class TensorData(Dataset[Any]):
    """Data of any one shape as (tensor, label or conditions) pairs; label 0 where there is none.

    They are a tensor (N, ...), a map-style data set, or any iterable, which is then kept in memory; items are tensors,
    (tensor, label) pairs, or (tensor, {name: condition}) pairs. `conditions` are the names of those that examples bring
    of their own, None where they bring labels. A UserError where there is no data, or items differ in shape.
    """

    def __init__(self, data: Any) -> None:  # noqa: ANN401  (whatever can be iterated)
        self.items = data if hasattr(data, "__getitem__") and hasattr(data, "__len__") else list(data)
        if not len(self.items):
            raise UserError("distill was given no data: give at least one example")
        first, label = self._pair(0)
        self.shape: tuple[int, ...] = tuple(first.shape)
        self.conditions = frozenset(label) if isinstance(label, Mapping) else None

    def __len__(self) -> int:
        return len(self.items)

    def _pair(self, index: int) -> tuple[Tensor, Any]:
        item = self.items[index]
        tensor, label = item if isinstance(item, tuple | list) else (item, 0)
        return torch.as_tensor(tensor, dtype=torch.float32), label if isinstance(label, Mapping) else int(label)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """One example and its label, or its own conditions."""
        tensor, label = self._pair(index)
        if tuple(tensor.shape) != self.shape:
            raise UserError(f"example {index} is {tuple(tensor.shape)}, the first is {self.shape}: give all one shape")
        return tensor, label

    def split(self, count: int, seed: int) -> tuple["TensorData", "TensorData"]:
        """(all but `count` examples, those `count`), chosen by the seed; a UserError if either would be empty."""
        parts = split_indices(len(self), count, seed, f"the data hold {len(self)} examples")
        first, second = ([self.items[index] for index in part.tolist()] for part in parts)
        return TensorData(first), TensorData(second)


class _Observer(Hooks):
    def __init__(self, observe: Callable[[int, Progress], None], first: int) -> None:
        self.observe, self.first = observe, first

    def progress(self, name: str, progress: Progress) -> None:
        """With the student's step count, or the teacher's in stage 0."""
        self.observe(self.first if name == "converted" else int(name.rpartition("-")[2]), progress)


def distill(
    teacher: Denoiser,
    data: Tensor | Dataset[Any] | Iterable[Any],
    chain: Sequence[int] = (512, 256, 128, 64, 32, 16, 8, 4),
    *,
    method: str | Method = "progressive",
    label: str | None = None,
    observe: Callable[[int, Progress], None] = lambda steps, progress: None,
    **options: Any,  # noqa: ANN401
) -> Denoiser:
    """Distil a teacher along a chain of step counts (paper, Algorithm 2).

    Args:
        teacher: left as it is. One that predicts eps, or that is guided, first gets a student of output v (see
            `progdist.methods.conversion`).
        data: tensors of one shape (N, ...), about [-1, 1]; or a data set or iterable of tensors, of (tensor, label), or
            of (tensor, {name: condition}), each condition a number or a tensor that the network takes by that name.
        chain: the teacher's step count, then each student's; each divides the one before.
        method: what a student learns: a name in `progdist.methods.METHODS` ("progressive", "stochastic", "tract"), or a
            `Method` of your own.
        label: the keyword under which the network takes the labels (B,); None for an unconditional one.
        observe: called with the student's step count (the teacher's in stage 0) and the progress, about a thousand
            times in each stage.
        options: any option of `TrainConfig` (updates=, batch=, learning_rate=, precision=, ...), for all stages; and

            - stages: what a stage overrides, by the student's step count: {4: {"updates": 2000}}
            - conversion: what stage 0 overrides: {"updates": 8000}, and its weighting; by default it takes four times
              the updates
            - config: a `TrainConfig` of all stages, in place of the defaults
            - weighting: of the loss, a name in WEIGHTINGS or a function of the SNR
            - guidance: a scale of classifier-free guidance to distil, or a range (low, high) that the student takes as
              an input: a UNet2DModel or DiTTransformer2DModel is given one, any other network must have a keyword
              `guidance` (B,) that it can be called without
            - null_class: the label that stands for no class, which guidance leads away from
            - zero_terminal_snr: whether the student's schedule ends in pure noise, or where the teacher's ends; by
              default in pure noise if the teacher predicts eps and is not guided
            - stop: `EarlyStopping`, to end stages early
            - seed: of all randomness, 0 by default

    Returns:
        The last student, on the device where the teacher was: sample it in `chain[-1]` steps.

    Raises:
        UserError: a chain that does not divide, no data, examples of different shapes, an option that there is not or
            that has no effect, guidance without labels, or a loss that is not finite.
    """
    examples, distributed = TensorData(data), Distributed()
    converts = "conversion" in options
    plan = _plan(chain, method, options)
    frozen = copy.deepcopy(teacher).to(distributed.device).eval()
    own = Teacher(Model(frozen, conditioning=_conditioning(label, plan)))
    plan.check(own.model)
    if converts and not plan.converts(own.model):
        raise UserError("conversion has no effect: this teacher needs no stage 0")
    guidance = plan.guidance if isinstance(plan.guidance, Input) else None
    hooks = _Observer(observe, chain[0])
    conditions = _example_conditions(label, examples.conditions)
    trainer = Trainer(examples, lambda model: conditions, hooks, distributed, plan.seed, guidance, plan.stop)
    model = convert(plan, own, trainer, taught_predictions(plan, own, distributed.device))
    for _, student in train_students(plan, model, trainer, own):
        model = student
    device = next((parameter.device for parameter in teacher.parameters()), torch.device("cpu"))
    return teacher.with_form_of(model.denoiser).to(device)


def _plan(chain: Sequence[int], method: str | Method, options: dict[str, Any]) -> Plan:
    """The plan of a call; a UserError for an option, a method or a stage that there is not."""
    if isinstance(method, str) and method not in METHODS:
        raise UserError(f"method {method!r} is unknown: use one of {', '.join(METHODS)}")
    counts = [link.steps for link in stages(chain)]
    weighting, overrides = options.pop("weighting", "truncated_snr"), options.pop("stages", {})
    conversion, config = dict(options.pop("conversion", {})), options.pop("config", None)
    conversion_weighting = conversion.pop("weighting", weighting)
    if any("checkpoint_every" in each for each in (options, conversion, *overrides.values())):
        raise UserError("checkpoint_every has no effect without a folder: see `progdist distill` for runs that resume")
    rest = {name: options.pop(name) for name in ("null_class", "zero_terminal_snr", "stop", "seed") if name in options}
    guidance = requested_guidance(options.pop("guidance", None))
    if rest.get("null_class") is not None and guidance is None:
        raise UserError("null_class requires guidance")
    if rest.get("seed", 0) < 0:
        raise UserError(f"seed is {rest['seed']}, expected 0 or more")
    if unknown := sorted(overrides.keys() - set(counts)):
        raise UserError(f"stages has the key {unknown[0]}, and the students take {counts} steps")
    if whole := [name for each in overrides.values() for name in OF_A_WHOLE_TRAINING if name in each]:
        raise UserError(f"{whole[0]} is of all stages: give it beside stages")
    base = (config or TrainConfig(**DEFAULTS["distill"])).overridden(**options)
    first = {"updates": CONVERSION_UPDATES * base.updates, "warmup": DEFAULTS["conversion"]["warmup"], **conversion}
    return Plan(
        chain=tuple(chain),
        stages={count: base.overridden(**overrides.get(count, {})) for count in counts},
        conversion=base.overridden(**first),
        method=METHODS[method] if isinstance(method, str) else method,
        weightings=(conversion_weighting, weighting),
        guidance=guidance,
        **rest,
    )


def _conditioning(label: str | None, plan: Plan) -> Conditioning:
    """Classes under a keyword, as many as guidance needs to know of; a UserError if it is not said which."""
    if plan.guidance is None:
        return Conditioning()
    if label is None or plan.null_class is None:
        raise UserError("guidance requires label and null_class, the label that stands for no class")
    return Classes(tuple(map(str, range(plan.null_class + 1))), plan.null_class, label)


def _example_conditions(label: str | None, names: frozenset[str] | None) -> LabelConditions:
    """The condition of a batch of examples that bring conditions of these names, or labels (None)."""
    if label and names is not None and "labels" not in names:
        raise UserError(f"the examples bring conditions of their own and no 'labels': remove label={label!r}")
    return LabelConditions(label, own=(names or frozenset()) - ({"labels"} if label else set()))
