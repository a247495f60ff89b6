r"""One training loop for any loss: many processes, mixed precision, an average of the weights, checkpoints.

    g      = mean over the global batch of dloss/dtheta
    theta <- AdamW(theta, g / max(1, |g| / max_grad_norm)),    rate_k = rate min(1, (k+1)/warmup) (1 - k/K  if annealed)
    ema   <- theta at the first update, then decay ema + (1 - decay) theta

The loss is a function loss(network, batch) -> (B,); what a batch holds is between the loss and the batches. Weight
decay is decoupled and scaled by the rate, as in the official code; with 0 this is Adam.

Whether an update is finite is decided on the device, and loss and norm stay there: nothing waits for the device but
the updates at which a record or a checkpoint is due.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from progdist._utils.broadcasting import time_device
from progdist._utils.errors import UserError
from progdist._utils.random import position_seed, seed_generators
from progdist._utils.signals import SHUTDOWN
from progdist.compute.cuda_graphs import CudaGraphs, accelerated, check_available
from progdist.compute.precision import autocast, enable_gradient_checkpointing
from progdist.training.batches import Batch
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import gather, load_agreed_checkpoint, shard
from progdist.training.records import NotFinite, Records, explain
from progdist.training.state import State

Loss = Callable[[nn.Module, Batch], Tensor]  # (network, batch) -> one loss per example, (B,)
BatchesOf = Callable[[int, int, slice], Iterator[Batch]]
"""(first update, last update, rows of the global batch) -> batches."""


@dataclass(frozen=True)
class TrainContext:
    """Where a network is trained, and what else happens there."""

    accelerator: Accelerator  # the device and the processes
    seed: int = 0  # of the dropout masks
    sharded: bool = False  # spread the network over the processes (see `progdist.training.distributed`)
    checkpoints: Checkpoints | None = None  # where to go on from, and to write to
    observe: Callable[[Progress], None] = lambda progress: None  # called at every `config.record_every`-th update
    stop: Callable[[nn.Module, int], bool] = lambda network, update: False  # (network, updates) -> end here


@dataclass(frozen=True)
class TrainResult:
    """A trained network."""

    network: nn.Module  # in evaluation mode; its EMA where the config has one, and a new one if it was spread
    updates: int  # made
    seconds: float  # of training, all sessions together


def train(
    network: nn.Module,
    loss: Loss,  # called with the prepared network, so that gradients are averaged over processes
    batches: BatchesOf,  # rows are this process's share of the global batch
    config: TrainConfig,
    context: TrainContext,
    *,
    average: nn.Module | None = None,  # a copy that is to hold the EMA, for a loss that looks at it; None to make one
    dropout: bool = False,  # whether the network's dropout is on
) -> TrainResult:
    """Train a network in place, from its latest checkpoint if there is one.

    Parameters that its author froze stay as they are, unless all are, as of a network made ready to be sampled.

    Raises:
        NotFinite: more updates in a row than `config.max_skipped_updates` made no step; the last checkpoint is named.
        Interrupted: a signal asked for the end, and a checkpoint is kept.
        UserError: as in `check_processes`, or the latest checkpoint is of another network.
    """
    accelerator, checkpoints, sharded = context.accelerator, context.checkpoints, context.sharded
    check_processes(config, accelerator.num_processes, sharded=sharded)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        network.requires_grad_(True)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(network)
    plain, device = copy.deepcopy(network) if sharded else network, accelerator.device
    prepared = network.to(device)
    if accelerator.num_processes > 1:
        prepared = shard(network, device) if sharded else accelerator.prepare(network)
    state = State(network, config, average.to(device) if average is not None else None)
    if checkpoints is not None:
        _restore(state, checkpoints, accelerator)
    prepared.train(dropout)
    computed = accelerated(prepared, config.compile, config.cuda_graphs)
    records = Records(state, config, accelerator, checkpoints, context.observe)
    share, index = config.batch // accelerator.num_processes, accelerator.process_index
    with SHUTDOWN.deferred_signals(), _fork_rng(device):
        for batch in batches(state.update, config.updates, slice(index * share, (index + 1) * share)):
            seed_generators(position_seed(context.seed, state.update, index), device)
            value, norm = _gradient(computed, state, loss, batch, accelerator)
            due = records.read(value, norm) if records.due() else None
            state.step(value.isfinite() & norm.isfinite(), norm)
            if due:
                records.report(due)
            if context.stop(network, state.update):
                break
    if isinstance(computed, CudaGraphs):
        computed.release()
    if sharded:
        plain.load_state_dict(gather(network.state_dict()))
    if accelerator.num_processes > 1:
        accelerator.free_memory()  # which keeps every network that it prepared
    if not all(parameter.isfinite().all() for parameter in plain.parameters()):
        raise NotFinite(explain(state.update, config, math.nan, math.inf, checkpoints))
    return TrainResult((plain if sharded else state.result()).eval(), state.update, records.seconds())


def check_processes(config: TrainConfig, processes: int, *, sharded: bool) -> None:
    """Raise a UserError for what so many processes cannot train, or for CUDA graphs without CUDA."""
    parts = processes * config.gradient_accumulation_steps
    if config.batch % parts:
        raise UserError(
            f"batch {config.batch} does not divide into {parts} (processes times gradient_accumulation_steps)"
        )
    if config.cuda_graphs:
        check_available()
        if processes > 1:
            raise UserError("cuda_graphs requires a single process: set it to false")
    if sharded and config.optimizer == "adamw8bit":
        raise UserError("optimizer adamw8bit cannot train a sharded network: leave --shard, or use adamw")
    if sharded and (config.ema or processes == 1):
        raise UserError("sharding needs several processes (torchrun), and no average of the weights: set ema to 0")


def _restore(state: State, checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    latest = load_agreed_checkpoint(checkpoints, accelerator)
    try:
        if latest is not None:
            state.restore(latest)
    except (LookupError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{checkpoints.latest_path()} is of another network or another version of progdist ({reason}): start "
            "over with --fresh, or remove it to train this model again"
        ) from error


def _fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """The context in which training may seed torch's generators, and after which they are the caller's again."""
    return (
        torch.random.fork_rng([]) if device.type == "cpu" else torch.random.fork_rng([device], device_type=device.type)
    )


def _gradient(
    network: nn.Module, state: State, loss: Loss, batch: Batch, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """The global batch's mean loss and its gradient's norm, on the device; the gradient is left in the parameters."""
    device, config = accelerator.device, state.config
    count = config.gradient_accumulation_steps
    placed = on_device(batch, device)
    parts = zip(*(tensor.chunk(count) for tensor in placed.values()), strict=True)
    total = torch.zeros((), device=device)
    for number, part in enumerate(parts, 1):
        with nullcontext() if number == count else accelerator.no_sync(network):
            with autocast(device, config.precision):
                value = loss(network, dict(zip(placed, part, strict=True))).float().mean() / count
            accelerator.backward(value)
        total += value.detach()
    norm = nn.utils.get_total_norm(parameter.grad for parameter in state.parameters if parameter.grad is not None)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return cast(Tensor, accelerator.reduce(total, "mean")), norm


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device; its times, in float64, where `time_device` says."""
    return {
        name: tensor.to(time_device(device) if tensor.dtype == torch.float64 else device, non_blocking=True)
        for name, tensor in batch.items()
    }
