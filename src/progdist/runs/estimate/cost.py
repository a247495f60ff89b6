"""Cost estimate: the networks of a run, its memory, and its duration.

The network is built in full and timed on this machine: seconds per example of an evaluation (f), of a training pass
forward and backward (g), and per update of the optimiser (o). A stage of U updates, batch B and k teacher steps takes

    U (B (k f + g) + o)

(See `frozen_evaluations` for k.) For a method that trains further networks the whole update is timed. Memory is counted
without running the stage (see `memory`); if it exceeds this device, nothing is timed.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from progdist._utils.words import counted
from progdist.compute.placement import empty_copy
from progdist.compute.precision import autocast, enable_gradient_checkpointing, resolve
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.methods.guidance import Input
from progdist.models.model import Model
from progdist.models.networks import example_condition, network_interface, with_guidance_input
from progdist.models.quantized_base import quantized_base, quantized_bytes
from progdist.recipes.recipe import Recipe, student_name
from progdist.runs.estimate.auxiliaries import bytes_of, method_pass
from progdist.runs.estimate.memory import META, Memory, Shape, activation_bytes, training_memory
from progdist.runs.pages.progress import frozen_evaluations, sampling_evaluations
from progdist.runs.run import Run
from progdist.runs.teacher_samples import TeacherSamples
from progdist.training.config import TrainConfig

LONG_ENOUGH = 1.0  # seconds of a measured pass: the batch is doubled up to this duration, or up to the recipe's batch


@dataclass(frozen=True)
class Rates:
    """Seconds of one evaluation and one training pass per example, and of one optimiser step."""

    evaluation: float
    training: float
    optimizer: float


@dataclass(frozen=True)
class Part:
    """One model of the run, or its evaluation: updates, batch, network evaluations of both roles, hours if timed."""

    name: str
    updates: int
    batch: int
    frozen_evaluations: int
    trained_evaluations: int
    hours: float | None


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run."""

    parameters: int  # parameters of the teacher's network
    image: tuple[int, ...]  # (channels, height, width)
    classes: int  # number of classes
    heaviest: str  # the model whose training takes most memory
    memory: Memory  # memory of that training
    capacity: int  # bytes of this device, or as stated
    device: str  # name of this device
    rates: Rates | None  # None if the run does not fit this device and was not timed
    parts: tuple[Part, ...]  # models and evaluation


def estimate(run: Run, capacity: int | None = None) -> Estimate:
    """Count the memory of a prepared run, time its network on this device if it fits, and add up.

    `capacity` is the memory of the target device in bytes; None for this device.
    """
    context, recipe = run.context, run.recipe
    model = context.opened.model if context.opened else run.untrained()
    denoiser, device = model.denoiser, context.distributed.device
    guided, stage_0 = context.opened is not None and context.plan.guides(model), context.has_stage_0
    configs = recipe.train_configs(stage_0=stage_0)
    if not (recipe.trains_teacher or stage_0):  # the teacher is not trained
        configs.pop("teacher")
    microbatch = max(config.batch // config.gradient_accumulation_steps for config in configs.values())
    heaviest, memory = heaviest_stage(recipe, model, configs, device)
    here, last = _bytes_of(device), list(configs.values())[-1]
    rates = measure(denoiser.to(device), model.shape, microbatch, last) if memory.total <= here else None
    frozen = frozen_evaluations(recipe, guided=guided, stage_0=stage_0)
    whole = _update_seconds(recipe, denoiser, model.shape, configs) if rates else {}
    parts = [_part(name, config, frozen[name], rates, whole.get(name)) for name, config in configs.items()]
    if context.samples:
        parts.insert(0, _samples_part(context.samples, rates))
    evaluations = recipe.evaluate.samples * sum(sampling_evaluations(recipe, guided=guided, stage_0=stage_0).values())
    hours = evaluations * rates.evaluation / 3600 if rates else None
    threads = counted(torch.get_num_threads(), "thread")
    parts.append(Part("evaluation", 0, recipe.evaluate.batch, evaluations, 0, hours))
    return Estimate(
        parameters=sum(parameter.numel() for parameter in denoiser.network.parameters()),
        image=model.image,
        classes=len(model.classes),
        heaviest=heaviest,
        memory=memory,
        capacity=here if capacity is None else capacity,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {threads}",
        rates=rates,
        parts=tuple(parts),
    )


def _bytes_of(device: torch.device) -> int:
    """The memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def heaviest_stage(
    recipe: Recipe, model: Model, configs: Mapping[str, TrainConfig], device: torch.device
) -> tuple[str, Memory]:
    """The name and memory of the model whose training takes most memory in a run.

    The teacher may be untrained. All memory is on `device`; models at rest count if that is the CPU.
    """
    frozen = int(not recipe.trains_teacher)
    guidance, denoiser = recipe.conversion.guidance, model.denoiser
    network = denoiser.network
    if isinstance(guidance, Input):
        network = with_guidance_input(network, guidance)
        denoiser = denoiser.with_parts(network=network, **network_interface(network))
    whole = sum(parameter.nbytes for parameter in network.parameters()) if device.type == "cpu" else 0
    if recipe.base_bits:
        network = quantized_base(empty_copy(network, META), recipe.base_bits)
        denoiser = denoiser.with_network(network)
    plan, stages = recipe.plan(), dict[tuple[object, ...], tuple[str, Memory]]()
    links = {student_name(link.steps): link for link in plan.links}
    for name, config in configs.items():
        link = links.get(name)
        number, method = (plan.links.index(link) + 1, plan.method_of(link.steps)) if link else (0, None)
        resting = (frozen + min(number, 2)) * whole
        teachers = int(frozen or number > 0)
        key = (replace(config, updates=1, learning_rate=1.0, warmup=0), teachers, resting, method)
        if key in stages:
            continue
        bf16 = resolve(config.precision, device) == "bf16"
        share = config.batch // config.gradient_accumulation_steps
        if link and method and method.auxiliaries:
            activations, auxiliaries = bytes_of(method, link, denoiser, model.shape, share, config)
        else:
            activations, auxiliaries = activation_bytes(denoiser, model.shape, share, config, bf16=bf16), 0
        memory = training_memory(network, config, teachers, bf16=bf16, activations=activations, resting=resting)
        memory = replace(memory, auxiliaries=auxiliaries)
        if device.type == "cpu" and not bf16:  # a frozen teacher in float32 is the copy at rest
            memory = replace(memory, teacher=quantized_bytes(network))
        stages[key] = name, memory
    return max(stages.values(), key=lambda each: each[1].total)


def _update_seconds(
    recipe: Recipe, denoiser: Denoiser, shape: Shape, configs: Mapping[str, TrainConfig]
) -> dict[str, float]:
    """Seconds of an update's losses, forward and backward, of students whose method trains further networks."""
    took, plan = dict[str, float](), recipe.plan()
    device = next(denoiser.parameters()).device
    for link in plan.links:
        name, method = student_name(link.steps), plan.method_of(link.steps)
        if method.auxiliaries:
            config = configs[name]
            share = config.batch // config.gradient_accumulation_steps
            one = method_pass(method, link, copy.deepcopy(denoiser).eval(), shape, share, config)
            took[name] = config.gradient_accumulation_steps * _seconds(one.work, device)
    return took


def _part(name: str, config: TrainConfig, frozen: int, rates: Rates | None, update: float | None = None) -> Part:
    """The part of one model; `update` is the duration of its losses in seconds, if they were timed."""
    examples, seconds = config.updates * config.batch, None
    if rates and update is not None:
        seconds = config.updates * (update + rates.optimizer)
    elif rates:
        seconds = examples * (frozen * rates.evaluation + rates.training) + config.updates * rates.optimizer
    return Part(name, config.updates, config.batch, frozen * examples, examples, seconds and seconds / 3600)


def _samples_part(samples: TeacherSamples, rates: Rates | None) -> Part:
    """The part of the teacher's own samples, as data."""
    evaluations = samples.count * samples.evaluations
    hours = evaluations * rates.evaluation / 3600 if rates else None
    return Part("teacher samples", 0, samples.shards.rows, evaluations, 0, hours)


def measure(denoiser: Denoiser, shape: tuple[int, ...], most: int, config: TrainConfig) -> Rates:
    """Measure the rates of a denoiser on its device, with batches of up to `most` images (C, H, W)."""
    denoiser = copy.deepcopy(denoiser)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(denoiser.network)
    device = next(denoiser.parameters()).device
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)
    batch, weighting = 1, WEIGHTINGS["truncated_snr"]
    while True:
        z = torch.randn(batch, *shape, device=device)
        u = torch.rand(batch, dtype=torch.float64)
        condition_kwargs = example_condition(denoiser, batch, device)

        def passes(z: Tensor = z, u: Tensor = u, condition_kwargs: dict[str, Tensor] = condition_kwargs) -> None:
            with autocast(device, config.precision):
                loss = denoising_loss(denoiser, z, z, u, weighting=weighting, **condition_kwargs).mean()
            loss.backward()

        @torch.no_grad()
        def evaluates(z: Tensor = z, u: Tensor = u, condition_kwargs: dict[str, Tensor] = condition_kwargs) -> None:
            with autocast(device, config.precision):
                denoiser(z, 1 - u, **condition_kwargs)

        if batch == most or _seconds(passes, device, 1) > LONG_ENOUGH:
            break
        batch = min(2 * batch, most)
    training, evaluation = _seconds(passes, device) / batch, _seconds(evaluates, device) / batch
    return Rates(evaluation, training, _seconds(optimizer.step, device))


def _seconds(work: Callable[[], object], device: torch.device, calls: int = 20) -> float:
    """The least duration of up to `calls` calls, at least two, after a warm-up; fewer if they are long."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    took: list[float] = []
    while len(took) < min(2, calls) or (len(took) < calls and sum(took) < LONG_ENOUGH):
        wait()
        started = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - started)
    return min(took)
