"""Cost estimate: what a run would build, how much memory it takes, and for how long.

The network is built whole, and timed on this machine: seconds per example of an evaluation (f), of a training pass
forward and back (g), and per update of the optimiser (o). A stage of U updates with batch B and k teacher steps takes

    U (B (k f + g) + o)

(See `evaluations` for k.) What it holds is counted without running it (see `memory`), and where that is more than
there is here nothing is timed.
"""

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from progdist.compute.precision import autocast, enable_gradient_checkpointing, resolve
from progdist.data.sources import load_images
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.models.guidance_input import with_class_guidance
from progdist.models.model import Model
from progdist.models.prompts import network_arguments, takes_guidance, trial_condition, with_guidance_input
from progdist.recipes.from_teacher import needs_stage_0
from progdist.recipes.recipe import Recipe
from progdist.runs.estimate.evaluations import frozen_evaluations, sampling_evaluations
from progdist.runs.estimate.memory import Memory, activation_bytes, training_memory
from progdist.runs.evaluator import measurement_plan
from progdist.runs.stages import untrained
from progdist.runs.teacher_checks import check_options
from progdist.teachers.open import read_teacher
from progdist.training.config import TrainConfig

LONG_ENOUGH = 1.0
"""Seconds that a measured pass should take; the batch is doubled until it does, or is the recipe's own."""


@dataclass(frozen=True)
class Rates:
    """Seconds: of one evaluation and one training pass per example, of one optimiser step."""

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
    """A run estimated.

    Attributes:
        parameters: of the teacher's network.
        image: (channels, height, width).
        classes: how many.
        heaviest: the model whose training takes most memory.
        memory: what that takes.
        capacity: bytes of the device found, or as stated.
        device: the one found.
        rates: None where the run does not fit the device found, and was not timed.
        parts: models and evaluation.
    """

    parameters: int
    image: tuple[int, int, int]
    classes: int
    heaviest: str
    memory: Memory
    capacity: int
    device: str
    rates: Rates | None
    parts: tuple[Part, ...]


def estimate(recipe: Recipe, capacity: int | None = None) -> Estimate:
    """Build a recipe's network, count what it holds, time it here if it fits, and add up.

    The data are opened only where the recipe does not state their size, channels and, if it needs them, classes.

    Args:
        recipe: of the run.
        capacity: bytes of the device that the run is meant for; None for those of the one found.

    Raises:
        UserError: as in `run`, before its training.
    """
    model = _model(recipe)
    measurement_plan(recipe).check(captions=model.text is not None)
    denoiser, device = model.denoiser, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_options(recipe, model if recipe.teacher.model else None)
    taken, guided = recipe.teacher.model is not None, _is_guided(recipe, model)
    configs = recipe.train_configs()
    if taken and not needs_stage_0(recipe, model):
        configs[0] = replace(configs[0], updates=0)
    microbatch = max(config.batch // config.gradient_accumulation_steps for config in configs)
    heaviest, memory = heaviest_stage(recipe, model, configs, device)
    here = _bytes_of(device)
    rates = measure(denoiser.to(device), model.shape, microbatch, configs[-1]) if memory.total <= here else None
    frozen = frozen_evaluations(recipe, guided=guided).items()
    parts = [_part(name, config, count, rates) for (name, count), config in zip(frozen, configs, strict=True)]
    parts.append(_evaluation(recipe, rates, guided))
    return Estimate(
        parameters=sum(parameter.numel() for parameter in denoiser.network.parameters()),
        image=model.image,
        classes=len(model.classes),
        heaviest=heaviest,
        memory=memory,
        capacity=here if capacity is None else capacity,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        rates=rates,
        parts=tuple(parts),
    )


def _is_guided(recipe: Recipe, model: Model) -> bool:
    """Whether a teacher takes two evaluations a step."""
    return recipe.conversion.guidance is not None and not takes_guidance(model.denoiser.network)


def _model(recipe: Recipe) -> Model:
    """The teacher that is taken, or the untrained one for the images as stated or as found."""
    data, network = recipe.data, recipe.network
    if network is None:
        return read_teacher(recipe.teacher.model or "", None, (data.size, data.size) if data.size else None).model
    stated = data.size is not None and data.channels is not None
    if stated and (data.classes is not None or not network.class_conditional):
        shape, classes = (data.channels or 0, data.size or 0, data.size or 0), range(data.classes or 0)
        return untrained(recipe, shape, tuple(map(str, classes)), data.source)
    images = load_images(data.source, data.transform(), data.columns())
    return untrained(recipe, images.shape, images.classes, images.name)


def _bytes_of(device: torch.device) -> int:
    """The memory of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def heaviest_stage(
    recipe: Recipe, model: Model, configs: Sequence[TrainConfig], device: torch.device
) -> tuple[str, Memory]:
    """The model whose training takes most memory, and what it takes.

    Args:
        recipe: of the run.
        model: its teacher, as given or untrained.
        configs: of the teacher's training or stage 0, and of every student's.
        device: on which all of it lies; models at rest count where that is the CPU.
    """
    taken, guidance, network = recipe.teacher.model is not None, recipe.conversion.guidance, model.denoiser.network
    if isinstance(guidance, tuple) and not takes_guidance(network):
        network = with_guidance_input(network) if model.text else with_class_guidance(network, guidance)
    denoiser = model.denoiser.with_parts(network=network, arguments=network_arguments(network))
    whole = sum(parameter.nbytes for parameter in network.parameters()) if device.type == "cpu" else 0
    found: dict[tuple[TrainConfig, int, int], tuple[str, Memory]] = {}
    for number, (name, config) in enumerate(zip(recipe.model_names(), configs, strict=True)):
        resting = (int(taken) + min(number, 2)) * whole
        taught = int(taken or number > 0) + int(recipe.lora is not None and number > 0)  # the pipeline's own weights
        key = (replace(config, updates=1, learning_rate=1.0, warmup=0), taught, resting)
        if key in found or not config.updates:
            continue
        bf16 = resolve(config.precision, device) == "bf16"
        share = config.batch // config.gradient_accumulation_steps
        activations = activation_bytes(denoiser, model.shape, share, config, bf16=bf16)
        memory = training_memory(network, config, taught=taught, bf16=bf16, activations=activations, resting=resting)
        if device.type == "cpu" and not bf16:  # a frozen teacher in float32 is itself at rest
            memory = replace(memory, teacher=0)
        found[key] = name, memory
    return max(found.values(), key=lambda each: each[1].total)


def _part(name: str, config: TrainConfig, substeps: int, rates: Rates | None) -> Part:
    examples = config.updates * config.batch
    hours = None
    if rates:
        seconds = examples * (substeps * rates.evaluation + rates.training) + config.updates * rates.optimizer
        hours = seconds / 3600
    return Part(name, config.updates, config.batch, substeps * examples, examples, hours)


def _evaluation(recipe: Recipe, rates: Rates | None, guided: bool) -> Part:
    """Teacher and students at all counts that are measured."""
    evaluations = recipe.evaluate.samples * sum(sampling_evaluations(recipe, guided=guided).values())
    hours = evaluations * rates.evaluation / 3600 if rates else None
    return Part("evaluation", 0, recipe.evaluate.batch, evaluations, 0, hours)


def measure(denoiser: Denoiser, shape: tuple[int, int, int], most: int, config: TrainConfig) -> Rates:
    """The rates of a denoiser on its device, with batches of up to `most` images (C, H, W); it is left as it is."""
    denoiser = copy.deepcopy(denoiser)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(denoiser.network)
    device = next(denoiser.parameters()).device
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)
    batch, took = 1, 0.0
    while True:
        z = torch.randn(batch, *shape, device=device)
        u = torch.rand(batch, dtype=torch.float64)
        condition_kwargs = trial_condition(denoiser.network, batch, device)

        def passes(z: Tensor = z, u: Tensor = u, condition_kwargs: dict[str, Tensor] = condition_kwargs) -> None:
            with autocast(device, config.precision):
                loss = denoising_loss(
                    denoiser, z, z, u, weighting=WEIGHTINGS["truncated_snr"], **condition_kwargs
                ).mean()
            loss.backward()

        @torch.no_grad()
        def evaluates(z: Tensor = z, u: Tensor = u, condition_kwargs: dict[str, Tensor] = condition_kwargs) -> None:
            with autocast(device, config.precision):
                denoiser(z, 1 - u, **condition_kwargs)

        took = _seconds(passes, device)
        if took > LONG_ENOUGH or batch == most:
            break
        batch = min(2 * batch, most)
    return Rates(_seconds(evaluates, device) / batch, took / batch, _seconds(optimizer.step, device))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least of several calls, after one that warms up; of two calls if they are long."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    took: list[float] = []
    while len(took) < 2 or (len(took) < 20 and sum(took) < LONG_ENOUGH):
        wait()
        started = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - started)
    return min(took)
