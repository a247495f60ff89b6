"""`progdist.distill`: the engine (`progdist.distillation`) without a folder, for a teacher and data of any form."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from progdist._utils.broadcasting import time_device
from progdist._utils.errors import UserError
from progdist._utils.random import restored
from progdist._utils.words import any_of, counted
from progdist.api.models import taken
from progdist.compute.precision import autocast
from progdist.compute.weights import check_finite, copied, is_double, narrow, unwrapped, widen
from progdist.data.examples import ExampleData, Notify
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol, check_denoiser
from progdist.diffusion.loss import diffuse
from progdist.diffusion.network_call import call_network
from progdist.distillation import (
    Hooks,
    Plan,
    Trainer,
    condition_parts,
    convert,
    latent_parts,
    taught_predictions,
    train_students,
)
from progdist.methods import METHODS, Method
from progdist.methods.chain import stages
from progdist.methods.guidance import Clipped, Input, requested_guidance, unclipped_warning
from progdist.models.conditioning import Classes, Conditioning, LabelConditions
from progdist.models.model import Model
from progdist.models.networks import class_count, kind_of
from progdist.teachers.open import Teacher
from progdist.training.batches import first_not_finite
from progdist.training.callbacks import Progress
from progdist.training.config import CONVERSION_UPDATES, DEFAULTS, OF_A_WHOLE_TRAINING, TrainConfig
from progdist.training.distributed import Distributed
from progdist.training.early_stopping import EarlyStopping
from progdist.training.gradients import on_device
from progdist.training.loop import check_parameters

LOG = logging.getLogger("progdist")


class _CallHooks(Hooks):
    def __init__(self, observe: Callable[[int, Progress], None], chain: Sequence[int], shows: bool) -> None:
        self.observe, self.chain, self.shows = observe, chain, shows

    def begin(self, name: str, config: TrainConfig) -> None:
        """A bar for each stage, on standard error where that is a terminal."""
        from tqdm import tqdm

        title = "stage 0" if name == "converted" else counted(int(name.rpartition("-")[2]), "step")
        self.bar = tqdm(desc=title, total=config.updates, unit="update", disable=None if self.shows else True)

    def end(self, name: str, *, finished: bool) -> None:
        """Close the bar and leave it in place."""
        self.bar.close()

    def progress(self, name: str, progress: Progress) -> None:
        """Show the loss, and call `observe` with the student's step count (the teacher's in stage 0)."""
        self.bar.set_postfix_str(f"loss {progress.loss:.4f}", refresh=False)
        self.bar.update(progress.update - self.bar.n)
        self.observe(self.chain[0] if name == "converted" else int(name.rpartition("-")[2]), progress)

    def note(self, text: str) -> None:
        """Log to "progdist", which shows warnings by default."""
        level = logging.WARNING if text.startswith("warning: ") else logging.INFO
        LOG.log(level, text.removeprefix("warning: "))


@torch.inference_mode(False)  # gradients are recorded, in whatever mode the caller is
def distill(
    teacher: Denoiser,
    data: Tensor | Dataset[Any] | Iterable[Any],
    chain: Sequence[int] = (512, 256, 128, 64, 32, 16, 8, 4),
    *,
    method: str | Method = "progressive",
    label: str | None = None,
    observe: Callable[[int, Progress], None] = lambda steps, progress: None,
    progress: bool = True,
    **options: Any,  # noqa: ANN401
) -> Denoiser:
    """Distil a teacher along a chain of step counts (paper, Algorithm 2).

    Args:
        teacher: is not modified. A teacher that predicts eps or is guided is first converted to v-prediction (see
            `progdist.methods.conversion`).
        data: floats of one shape (N, ...), about [-1, 1]; or a data set, a DataLoader or an iterable of x, (x,), (x,
            label), (x, {name: condition}) or {"x": x, name: condition}; or columns, {"x": (N, ...), name: (N, ...)}. A
            condition is a number, array or tensor that the network takes as the keyword `name`; whole numbers become
            int64.
        chain: the teacher's step count, then each student's; each divides the one before.
        method: a name in `progdist.methods.METHODS` ("progressive", "balanced", "adversarial", "stochastic", "tract"),
            or a custom `Method`.
        label: the network's keyword for the label of each example, (B, ...) of any type; None for data without labels.
        observe: called with the student's step count (the teacher's in stage 0) and the progress, about a thousand
            times in each stage.
        progress: show a bar for each stage, where standard error is a terminal.
        options: any option of `TrainConfig` (updates=, batch=, learning_rate=, precision=, ...), for all stages; and

            - options: the method's own: {"weight": 0.5}
            - initial: a student to start from, in place of the teacher; requires a chain of one stage
            - stages: overrides of single stages, by the student's step count: {4: {"updates": 2000, "options": {...}}}
            - conversion: overrides for stage 0, e.g. {"updates": 8000}, and its weighting; by default it takes four
              times the updates
            - config: a `TrainConfig` for all stages, in place of the defaults
            - weighting: weights of the loss, a name in WEIGHTINGS or a function of the SNR
            - guidance: a scale of classifier-free guidance to distil, or a range (low, high) that the student takes as
              an input: one is added to a UNet2DModel or DiTTransformer2DModel, any other network must have an optional
              keyword `guidance` (B,)
            - clip: clip the teacher's predictions to [-1, 1], as the samplers of many libraries do, or to another
              bound; students learn the clipped predictions
            - null_class: label of the null class (the unconditional branch of guidance)
            - zero_terminal_snr: whether the student's schedule ends in pure noise, or where the teacher's ends; by
              default in pure noise if the teacher predicts eps and is not guided
            - stop: `EarlyStopping`, to end stages early
            - seed: of all randomness, 0 by default

    Returns:
        The last student, on the teacher's device: sample it in `chain[-1]` steps. Its weights have the teacher's
        types: those of 16 bits are trained as float32 and rounded at the end. Frozen layers stay unchanged, unless all
        are frozen; the network is unwrapped from DataParallel and torch.compile.

    Raises:
        UserError: a chain that does not divide or reaches before the network's first timestep; no data; examples of
            different shapes, types or conditions, or that are not finite; labels that are missing, or that the network
            takes and `label` does not name; an option that is unknown, of a wrong type or without effect; guidance
            without labels; a teacher that cannot be trained, or whose weights or predictions are not finite; different
            arguments in different processes; a loss that is not finite.
    """
    check_denoiser(teacher, own=True)
    _check_arguments(label, observe, progress, options)
    chain = chain.tolist() if hasattr(chain, "tolist") else chain  # pyright: ignore[reportAttributeAccessIssue]
    hooks, converts = _CallHooks(observe, chain, progress), "conversion" in options
    limited = _clipped(teacher, options.pop("clip", False), hooks.note)
    plan = _plan(chain, method, options)
    with restored():
        examples = ExampleData(data, label, hooks.note)
    _check_labels(teacher, examples, hooks.note)
    distributed = Distributed()
    hooks.shows &= distributed.is_main_process
    plan = _agreed(plan, examples, distributed, hooks)
    frozen = _frozen(teacher, distributed.device)
    own = Teacher(Model(frozen, conditioning=_conditioning(label, plan), **teacher.history), limited=limited)
    plan.check(own.model)
    if plan.converts(own.model) and (warning := plan.conversion.ema_warning):
        hooks.note(f"warning: stage 0: {warning}")
    for warning in filter(None, dict.fromkeys(config.ema_warning for config in plan.stages.values())):
        hooks.note(f"warning: {warning}")
    if converts and not plan.converts(own.model):
        raise UserError("conversion has no effect, because this teacher needs no stage 0: remove it")
    guidance = plan.guidance if isinstance(plan.guidance, Input) else None
    conditions = LabelConditions(None, own=examples.names)
    trainer = Trainer(examples, lambda model: conditions, hooks, distributed, plan.seed, guidance, plan.stop)
    predictions = taught_predictions(plan, own, distributed.device)
    with restored(distributed.device):
        _check_predictions(plan, own.model, trainer, predictions)
    try:
        model = convert(plan, own, trainer, predictions)
        for _, student in train_students(plan, model, trainer, own):
            model = student
    except IndexError as error:  # a label beyond an embedding table, first met in this batch
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"the network fails on some of the data ({reason}): use labels below its number of classes"
        ) from error
    narrow(model.denoiser.network, like=unwrapped(teacher.network))
    student = model.denoiser
    narrow(student, like=teacher.with_network(student.network))
    student.to(next(teacher.parameters()).device)
    student.history = model.history
    return student


def _frozen(teacher: Denoiser, device: torch.device) -> Denoiser:
    """Copy a teacher to a device, unwrapped, in at least 32 bits; a UserError if its weights are not finite."""
    network = unwrapped(teacher.network)
    check_parameters(network)
    check_finite(network, "the teacher")
    frozen = copied(teacher.with_network(network)).to(device).eval()
    widen(frozen)
    return frozen


def _agreed(plan: Plan, examples: ExampleData, distributed: Distributed, hooks: Hooks) -> Plan:
    """Resolve every precision `auto` for all processes; a UserError if their plans differ."""
    configs = {0: plan.conversion, **plan.stages}
    what = repr((plan.chain, plan.method.name, plan.options, configs, plan.seed, len(examples), examples.shape))
    distributed.processes.agree(what, "process {process} got a different chain, data or options than process 0")
    precision = distributed.resolve("auto")
    if any(config.precision == "auto" for config in configs.values()):
        hooks.note(f"precision: {precision}")
    chosen = {
        name: replace(config, precision=precision) if config.precision == "auto" else config
        for name, config in configs.items()
    }
    return replace(plan, conversion=chosen.pop(0), stages=chosen)


@torch.no_grad()
def _check_predictions(plan: Plan, teacher: Model, trainer: Trainer, predictions: DenoiserProtocol) -> None:
    """Refuse a teacher whose predictions are not finite on a few examples at the first, a middle and the last time.

    A batch of data that is not finite is refused, too.
    """
    device, count = trainer.distributed.device, plan.chain[0]
    times = torch.tensor([1.0, (count + 1) // 2 / count, 1 / count], dtype=torch.float64)
    times = times.to(time_device(device))
    batch = on_device(next(trainer.batch(trainer.examples, len(times), 0)(0, 1, slice(len(times)))), device)
    z = diffuse(predictions.schedule, *latent_parts(batch, is_double(teacher.denoiser.network)), times)
    condition = condition_parts(trainer.conditions(teacher)(batch), is_double(teacher.denoiser.network))
    with taken("data", z, condition), autocast(device, plan.stages[plan.links[0].steps].precision):
        x = predictions(z, times, **condition)
    if (row := first_not_finite(x)) is not None:
        raise UserError(
            f"the teacher's prediction is not finite at t = {times[row]:g}, on example {row} of the data and noise: "
            "check its network, its prediction type and its schedule"
        )


def _plan(chain: Sequence[int], method: str | Method, options: dict[str, Any]) -> Plan:
    """The plan of a call; a UserError for an unknown option, method or stage."""
    if not isinstance(method, Method) and (not isinstance(method, str) or method not in METHODS):
        raise UserError(f"method {method!r} is unknown: use one of {', '.join(METHODS)}, or a Method of your own")
    counts = [link.steps for link in stages(chain)]
    weighting, overrides = options.pop("weighting", "truncated_snr"), options.pop("stages", {})
    own = options.pop("options", {})
    own = {count: {**own, **overrides.get(count, {}).get("options", {})} for count in counts}
    overrides = {count: {name: each[name] for name in each if name != "options"} for count, each in overrides.items()}
    conversion, config = dict(options.pop("conversion", {})), options.pop("config", None)
    conversion_weighting = conversion.pop("weighting", weighting)
    if any("checkpoint_every" in each for each in (options, conversion, *overrides.values())):
        raise UserError("checkpoint_every applies only to runs in a folder: remove it, or use `progdist distill`")
    names = ("null_class", "zero_terminal_snr", "stop", "seed", "initial")
    rest = {name: options.pop(name) for name in names if name in options}
    guidance = requested_guidance(options.pop("guidance", None))
    if rest.get("null_class") is not None and guidance is None:
        raise UserError("null_class requires guidance")
    if rest.get("seed", 0) < 0:
        raise UserError(f"seed is {rest['seed']}, expected 0 or more")
    if unknown := sorted(overrides.keys() - set(counts)):
        raise UserError(f"stages has the key {unknown[0]}, but the students take {any_of(counts, 'step')}")
    if whole := [name for each in overrides.values() for name in OF_A_WHOLE_TRAINING if name in each]:
        raise UserError(f"{whole[0]} applies to all stages: pass it outside stages")
    learned = METHODS[method] if isinstance(method, str) else method
    plain = (config or TrainConfig(**DEFAULTS["distill"])).overridden(**options)
    base = plain if config else plain.overridden(**{**learned.training, **options})
    first = {"updates": CONVERSION_UPDATES * base.updates, "warmup": DEFAULTS["conversion"]["warmup"], **conversion}
    return Plan(
        chain=tuple(map(int, chain)),
        stages={count: base.overridden(**overrides.get(count, {})) for count in counts},
        conversion=plain.overridden(**first),
        method=learned,
        options=own,
        weightings=(conversion_weighting, weighting),
        guidance=guidance,
        **rest,
    )


def _conditioning(label: str | None, plan: Plan) -> Conditioning:
    """The conditioning on class labels for guidance; a UserError if `label` or `null_class` is missing."""
    if plan.guidance is None:
        return Conditioning()
    if label is None or plan.null_class is None:
        raise UserError("guidance requires label and null_class, the label of the null class")
    return Classes(tuple(map(str, range(plan.null_class + 1))), plan.null_class, label)


_TYPES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "options": (Mapping, "a dictionary of the method's options"),
    "initial": (Denoiser, "a progdist.Denoiser"),
    "stages": (Mapping, "a dictionary by step count: {4: {...}}"),
    "conversion": (Mapping, "a dictionary of options"),
    "config": (TrainConfig, "a TrainConfig"),
    "null_class": (Integral, "a label"),
    "zero_terminal_snr": (bool, "True or False"),
    "stop": (EarlyStopping, "an EarlyStopping"),
    "seed": (Integral, "a whole number"),
    "clip": (Real, "True, False or a bound"),
}
"""Types of the options of `distill` that no other class checks."""


def _check_arguments(label: object, observe: object, progress: object, options: Mapping[str, Any]) -> None:
    """Raise a UserError for an argument of a wrong type."""
    if label is not None and not isinstance(label, str):
        raise UserError(f"label is {str(label)[:50]}, expected the name of the network's keyword")
    if not callable(observe):
        raise UserError(f"observe is a {type(observe).__name__}, expected a function of (steps, progress)")
    if not isinstance(progress, bool):
        raise UserError(f"progress is {str(progress)[:50]}, expected True or False")
    for name, (kind, expected) in _TYPES.items():
        value = options.get(name)
        if (
            value is None
            and name in options
            and name in ("null_class", "zero_terminal_snr", "stop", "config", "initial")
        ):
            continue
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and name in ("null_class", "seed"))
        if name in options and wrong:
            raise UserError(f"{name} is {repr(value)[:50]}, expected {expected}")
    for steps, each in options.get("stages", {}).items():
        if not isinstance(each, Mapping):
            raise UserError(f"stages has {repr(each)[:50]} for {steps} steps, expected a dictionary of options")
        if not isinstance(each.get("options", {}), Mapping):
            raise UserError(f"options is {repr(each['options'])[:50]} for {steps} steps, expected a dictionary")


def _check_labels(teacher: Denoiser, examples: ExampleData, notify: Notify) -> None:
    """Refuse labels that the network takes and `label` does not name; warn if labels are ignored."""
    if not examples.labelled or examples.label:
        return
    if names := _more_inputs(teacher):
        raise UserError(
            f"the examples have labels, which {type(teacher.network).__name__} takes by keyword: pass "
            f"label={names[0]!r}, or data without labels"
        )
    notify("warning: the labels of the examples are ignored: pass label=KEYWORD if the network takes them")


def _more_inputs(teacher: Denoiser) -> list[str]:
    """The network's inputs other than latents and time, as far as its signature names them."""
    if kind_of(teacher.network):
        return ["class_labels"] if class_count(teacher.network) else []
    if teacher.call is not call_network:
        return []
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    inputs = list(inspect.signature(teacher.network.forward).parameters.values())[2:]
    return [each.name for each in inputs if each.kind in by_name and each.name != "guidance"]


def _clipped(teacher: Denoiser, clip: bool | float, notify: Notify) -> Callable[[DenoiserProtocol], DenoiserProtocol]:
    """Clip predictions to the bound of `clip`; warn if a teacher needs one and has none."""
    bound = 1.0 if clip is True else float(clip)
    if bound and not 0 < bound < inf:
        raise UserError(f"clip is {clip}, expected True, False or a positive bound")
    if bound and getattr(teacher, "autoencoder", None):
        raise UserError("clip applies only to data in [-1, 1], and a latent model predicts latents: remove it")
    if not bound and (warning := unclipped_warning(teacher)):
        notify(f"warning: {warning}")
    return partial(Clipped, bound=bound) if bound else lambda denoiser: denoiser
