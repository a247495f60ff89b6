r"""One training loop for any loss: many processes, mixed precision, an average of the weights, checkpoints.

    g      = mean over the global batch of dloss/dtheta, clipped to a global norm
    theta <- AdamW(theta, g),    rate_k = rate min(1, (k+1)/warmup) (1 - k/K  if annealed)
    ema   <- theta at the first update, then decay ema + (1 - decay) theta

The loss is a function loss(network, batch) -> (B,); what a batch holds is between the loss and the batches. Weight
decay is decoupled and scaled by the rate, as in the official code; with 0 this is Adam.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from progdist._utils.errors import UserError
from progdist._utils.precision import autocast, enable_gradient_checkpointing
from progdist._utils.signals import SHUTDOWN
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import gather, load_agreed_checkpoint, shard
from progdist.training.state import State

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""(network, batch) -> one loss per example, (B,)."""

BatchesOf = Callable[[int, int, slice], Iterator[Batch]]
"""(first update, last update, rows of the global batch) -> batches."""


class NotFinite(UserError):
    """A loss or gradient that is not finite."""


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
) -> tuple[nn.Module, int, float]:
    """Train a network, from its latest checkpoint if there is one.

    Args:
        network: trained in place, moved to the accelerator's device.
        loss: given the prepared network, so that gradients are averaged over processes.
        batches: as in BatchesOf; rows are this process's share of the global batch.
        config: all numbers.
        accelerator: where it runs.
        seed: of the dropout masks.
        checkpoints: where to go on from, and to write to.
        observe: called after every update.
        stop: asked after every update (from 1) whether to end before config.updates; given the network as it is.
        sharded: spread the network over the processes (see `progdist.training.distributed`).

    Returns:
        The network (a new one if it was spread), or its EMA where the config has one; the updates made; and the
        seconds of training, all sessions together.

    Raises:
        NotFinite: more updates in a row than `config.max_skipped_updates` gave a loss or gradient that is not finite.
            None of them made a step; the last checkpoint is named.
        Interrupted: a signal asked for the end, and a checkpoint is kept.
        UserError: the batch does not divide among processes and gradient_accumulation_steps.
    """
    parts = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch % parts:
        raise UserError(
            f"batch {config.batch} does not divide into {parts} (processes times gradient_accumulation_steps)"
        )
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(network)
    if sharded and (config.ema or accelerator.num_processes == 1):
        raise UserError("sharding needs several processes (torchrun), and no average of the weights: set ema to 0")
    plain = copy.deepcopy(network) if sharded else network
    device = accelerator.device
    prepared = shard(network.to(device), device) if sharded else accelerator.prepare(network)
    state = State(network, config)
    if checkpoints is not None and (latest := load_agreed_checkpoint(checkpoints, accelerator)):
        try:
            state.restore(latest)
        except (LookupError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"{checkpoints.latest_path()} is of another network or another version of progdist ({reason}): start "
                "over with --fresh, or remove it to train this model anew"
            ) from error
    prepared.train(config.dropout)
    share = config.batch // accelerator.num_processes
    rows = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    started, value = time.perf_counter() - state.seconds, 0.0
    with SHUTDOWN.deferred_signals(), _own_generators(device):
        for batch in batches(state.update, config.updates, rows):
            torch.manual_seed(seed + state.update * accelerator.num_processes + accelerator.process_index)
            value, norm, asked = _gradient(prepared, loss, batch, config, accelerator)
            progress = Progress(state.update + 1, value, norm, config.rate(state.update), 0.0, state.skipped)
            due = state.update and (state.update % config.checkpoint_every == 0 or asked)
            if checkpoints is not None and due and progress.finite:
                checkpoints.save(state.checkpoint())  # its weights have just given a finite loss and gradient
            if asked:
                SHUTDOWN.stop()
            state.step() if progress.finite else state.skip()
            if state.skipped_in_a_row > config.max_skipped_updates:
                raise NotFinite(_explain(state.update, config, value, norm, checkpoints))
            state.seconds = time.perf_counter() - started
            observe(replace(progress, seconds=state.seconds, skipped=state.skipped))
            if stop(network, state.update):
                break
    if sharded:
        plain.load_state_dict(gather(network.state_dict()))
    if not all(parameter.isfinite().all() for parameter in plain.parameters()):
        raise NotFinite(_explain(state.update, config, value, math.inf, checkpoints))
    return (plain if sharded else state.result()).eval(), state.update, state.seconds


def _own_generators(device: torch.device) -> AbstractContextManager[None]:
    """The context in which training may seed torch's generators, and after which they are the caller's again."""
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


def _gradient(
    network: nn.Module, loss: Loss, batch: Batch, config: TrainConfig, accelerator: Accelerator
) -> tuple[float, float, bool]:
    """Leave the gradient of the global batch's mean loss in the parameters.

    Returns:
        The loss, the gradient's norm, and whether any process was asked to stop: the same in all of them.
    """
    device = accelerator.device
    parts = [{} for _ in range(config.gradient_accumulation_steps)]
    for name, tensor in batch.items():
        placed = tensor if tensor.dtype == torch.float64 else tensor.to(device)  # times stay on the CPU
        for part, piece in zip(parts, placed.chunk(config.gradient_accumulation_steps), strict=True):
            part[name] = piece
    total = torch.zeros((), device=device)
    for number, part in enumerate(parts, 1):
        last = number == config.gradient_accumulation_steps
        with nullcontext() if last else accelerator.no_sync(network):
            with autocast(device, config.precision):
                value = loss(network, part).float().mean() / config.gradient_accumulation_steps
            accelerator.backward(value)
        total += value.detach()
    norm = accelerator.clip_grad_norm_(network.parameters(), config.max_grad_norm or math.inf)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    asked = torch.full((), float(SHUTDOWN.requested is not None), device=device)
    mean, stops = cast(Tensor, accelerator.reduce(torch.stack([total, asked]), "mean"))
    return float(mean), float(norm), bool(stops)  # pyright: ignore[reportArgumentType]


def _explain(update: int, config: TrainConfig, value: float, norm: float, checkpoints: Checkpoints | None) -> str:
    last = checkpoints.latest_path() if checkpoints else None
    kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint of this stage yet"
    return (
        f"update {update} of {config.updates}: loss {value:g} and gradient norm {norm:g} are not both finite; {kept}: "
        "lower the learning rate or use precision float32 with --set, and run again to continue"
    )
