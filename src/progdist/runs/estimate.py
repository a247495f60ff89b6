"""Cost estimate: what a run would build, how much memory it takes, and for how long.

The network is built whole, and timed on this machine: seconds per example of an evaluation (f), of a training pass
forward and back (g), and per update of the optimiser (o). A stage of U updates with batch B and k teacher steps takes

    U (B (k f + g) + o)

and holds the weights w, gradients w, Adam's moments 2 w, the average or the frozen teacher w, or both, and what one
microbatch saves for the way back; of a low-rank student, w once. With the target `tract` k is 2.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from progdist._utils.precision import autocast, enable_gradient_checkpointing
from progdist.data.sources import load_images
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.models.model import Model
from progdist.models.text.pipeline import takes_guidance, trial_condition
from progdist.recipes.recipe import Recipe, student_name
from progdist.recipes.training import train_config
from progdist.runs.stages import needs_stage_0, untrained
from progdist.training.config import TrainConfig

LONG_ENOUGH = 1.0
"""Seconds that a measured pass should take; the batch is doubled until it does, or is the recipe's own."""


@dataclass(frozen=True)
class Rates:
    """Seconds: of one evaluation and one training pass per example, of one optimiser step; bytes saved per example."""

    evaluation: float
    training: float
    optimizer: float
    saved: int


@dataclass(frozen=True)
class Part:
    """One model of the run, or its evaluation: its updates, batch, the network evaluations of both roles, the hours."""

    name: str
    updates: int
    batch: int
    frozen_evaluations: int
    trained_evaluations: int
    hours: float


@dataclass(frozen=True)
class Estimate:
    """A run estimated; memory in bytes."""

    parameters: int
    image: tuple[int, int, int]
    classes: int
    memory: int
    device: str
    rates: Rates
    parts: tuple[Part, ...]


def estimate(recipe: Recipe) -> Estimate:
    """Build a recipe's network, time it here, and add up.

    The data are opened only where the recipe does not state their size, channels and, if it needs them, classes.

    Raises:
        UserError: as in `run`, before its training.
    """
    model = _model(recipe)
    denoiser = model.denoiser
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser.to(device)
    taken, guided = recipe.teacher.model is not None, _is_guided(recipe, model)
    teacher_config = recipe.conversion_config() if taken else train_config(recipe.teacher)
    if taken and not needs_stage_0(recipe, model):
        teacher_config = replace(teacher_config, updates=0)
    configs = [teacher_config, *(recipe.student_config(link) for link in recipe.distill.links())]
    microbatch = max(config.batch // config.gradient_accumulation_steps for config in configs)
    rates = measure(denoiser, model.shape, microbatch, configs[-1])
    weights = sum(parameter.nbytes for parameter in denoiser.network.parameters())
    parts = [_part("teacher", teacher_config, int(taken) * (2 if guided else 1), rates)]
    for link, config in zip(recipe.distill.links(), configs[1:], strict=True):
        frozen = 2 if recipe.distill.target == "tract" else link.substeps
        parts.append(_part(student_name(link.steps), config, frozen, rates))
    parts.append(_evaluation(recipe, rates, guided))
    return Estimate(
        parameters=sum(parameter.numel() for parameter in denoiser.network.parameters()),
        image=model.image,
        classes=len(model.classes),
        memory=(1 if configs[-1].lora_rank else 6 if recipe.distill.ema else 5) * weights + microbatch * rates.saved,
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


def _part(name: str, config: TrainConfig, substeps: int, rates: Rates) -> Part:
    examples = config.updates * config.batch
    seconds = examples * (substeps * rates.evaluation + rates.training) + config.updates * rates.optimizer
    return Part(name, config.updates, config.batch, substeps * examples, examples, seconds / 3600)


def _evaluation(recipe: Recipe, rates: Rates, guided: bool) -> Part:
    """Teacher and students at all counts that are measured."""
    measurements = recipe.measurements()
    steps = sum(steps for _, steps in measurements)
    if recipe.teacher.model is not None:  # as it was given, too
        steps += measurements[0][1] * (2 if guided else 1)
    evaluations = recipe.evaluate.samples * steps
    return Part("evaluation", 0, recipe.evaluate.batch, evaluations, 0, evaluations * rates.evaluation / 3600)


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
    saved = _saved_bytes(passes, denoiser.network) // batch
    return Rates(_seconds(evaluates, device) / batch, took / batch, _seconds(optimizer.step, device), saved)


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


def _saved_bytes(work: Callable[[], object], network: nn.Module) -> int:
    """Bytes that autograd keeps for the way back, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())
