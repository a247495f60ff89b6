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
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import gather, load_agreed_checkpoint, shard
from progdist.training.records import NotFinite, Records, explain
from progdist.training.state import State

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""(network, batch) -> one loss per example, (B,)."""

BatchesOf = Callable[[int, int, slice], Iterator[Batch]]
"""(first update, last update, rows of the global batch) -> batches."""


def train(
    network: nn.Module,
    loss: Loss,
    batches: BatchesOf,
    config: TrainConfig,
    *,
    accelerator: Accelerator,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    observe: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[nn.Module, int], bool] = lambda network, update: False,
    sharded: bool = False,
    average: nn.Module | None = None,
) -> tuple[nn.Module, int, float]:
    """Train a network, from its latest checkpoint if there is one.

    Args:
        network: trained in place, moved to the accelerator's device. Parameters that its author froze stay as they
            are, unless all are frozen, as of a network that was made ready to be sampled.
        loss: given the prepared network, so that gradients are averaged over processes.
        batches: as in BatchesOf; rows are this process's share of the global batch.
        config: all numbers.
        accelerator: where it runs.
        seed: of the dropout masks.
        checkpoints: where to go on from, and to write to.
        observe: called at every `config.record_every`-th update.
        stop: asked after every update (from 1) whether to end before config.updates; given the network as it is.
        sharded: spread the network over the processes (see `progdist.training.distributed`).
        average: a copy of the network that is to hold its EMA, for a loss that looks at it; made here if not given.

    Returns:
        The network (a new one if it was spread), or its EMA where the config has one; the updates made; and the
        seconds of training, all sessions together.

    Raises:
        NotFinite: more updates in a row than `config.max_skipped_updates` gave a loss or gradient that is not finite.
            None of them made a step; the last checkpoint is named.
        Interrupted: a signal asked for the end, and a checkpoint is kept.
        UserError: as in `check_processes`, or the latest checkpoint is of another network.
    """
    check_processes(config, accelerator.num_processes, sharded=sharded)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        network.requires_grad_(True)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(network)
    plain, device = copy.deepcopy(network) if sharded else network, accelerator.device
    prepared = shard(network.to(device), device) if sharded else _prepared(network, accelerator)
    state = State(network, config, average.to(device) if average is not None else None)
    if checkpoints is not None:
        _restore(state, checkpoints, accelerator)
    prepared.train(config.dropout)
    computed = accelerated(prepared, config.compile, config.cuda_graphs)
    records = Records(state, config, accelerator, checkpoints, observe)
    with SHUTDOWN.deferred_signals(), _own_generators(device):
        for batch in batches(state.update, config.updates, _own_rows(config, accelerator)):
            seed_generators(position_seed(seed, state.update, accelerator.process_index), device)
            value, norm = _gradient(computed, state, loss, batch, accelerator)
            due = records.read(value, norm) if records.due() else None
            state.step(value.isfinite() & norm.isfinite(), norm)
            if due:
                records.tell(due)
            if stop(network, state.update):
                break
    if isinstance(computed, CudaGraphs):
        computed.release()
    if sharded:
        plain.load_state_dict(gather(network.state_dict()))
    if accelerator.num_processes > 1:
        accelerator.free_memory()  # which keeps every network that it prepared
    if not all(parameter.isfinite().all() for parameter in plain.parameters()):
        raise NotFinite(explain(state.update, config, math.nan, math.inf, checkpoints))
    return (plain if sharded else state.result()).eval(), state.update, records.seconds()


def check_processes(config: TrainConfig, processes: int, *, sharded: bool) -> None:
    """Refuse what so many processes cannot train.

    Raises:
        UserError: the batch does not divide into processes times gradient_accumulation_steps; or the network is to be
            spread over them, and there is only one, an average of the weights, or an optimizer of 8 bits; or CUDA
            graphs are wanted of several, or without CUDA.
    """
    parts = processes * config.gradient_accumulation_steps
    if config.batch % parts:
        raise UserError(
            f"batch {config.batch} does not divide into {parts} (processes times gradient_accumulation_steps)"
        )
    if config.cuda_graphs:
        check_available()
        if processes > 1:
            raise UserError("cuda_graphs is for one process: set it to false")
    if sharded and config.optimizer == "adamw8bit":
        raise UserError("optimizer adamw8bit is of weights that are not spread over processes: leave --shard, or it")
    if sharded and (config.ema or processes == 1):
        raise UserError("sharding needs several processes (torchrun), and no average of the weights: set ema to 0")


def _restore(state: State, checkpoints: Checkpoints, accelerator: Accelerator) -> None:
    """Go on from the latest checkpoint, if there is one."""
    latest = load_agreed_checkpoint(checkpoints, accelerator)
    if latest is None:
        return
    try:
        state.restore(latest)
    except (LookupError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{checkpoints.latest_path()} is of another network or another version of progdist ({reason}): start "
            "over with --fresh, or remove it to train this model anew"
        ) from error


def _prepared(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The network on its device, its gradients averaged over the processes where there are several."""
    if accelerator.num_processes == 1:
        return network.to(accelerator.device)
    return accelerator.prepare(network)


def _own_rows(config: TrainConfig, accelerator: Accelerator) -> slice:
    """This process's share of the global batch."""
    share = config.batch // accelerator.num_processes
    return slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def _own_generators(device: torch.device) -> AbstractContextManager[None]:
    """The context in which training may seed torch's generators, and after which they are the caller's again."""
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


def _gradient(
    network: nn.Module, state: State, loss: Loss, batch: Batch, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Leave the gradient of the global batch's mean loss in the parameters.

    Returns:
        The loss and the gradient's norm, on the device, the same in all processes.
    """
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
