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
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from progdist._errors import UserError
from progdist.checkpoint import Checkpoints
from progdist.interruption import PENDING
from progdist.plan import Plan, Progress
from progdist.precision import autocast
from progdist.sharding import shard, whole
from progdist.team import agreed_checkpoint
from progdist.training_state import State

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""(network, batch) -> one loss per example, (B,)."""

BatchesOf = Callable[[int, int, slice], Iterator[Batch]]
"""(first update, last update, rows of the global batch) -> batches."""


class NotFinite(UserError):
    """A loss or gradient that is not finite."""


def recompute(network: nn.Module) -> None:
    """Have a network compute its inner values again on the way back, as diffusers' networks can.

    Raises:
        UserError: it cannot.
    """
    if not hasattr(network, "enable_gradient_checkpointing"):
        kind = type(network).__name__
        raise UserError(f"{kind} has no enable_gradient_checkpointing(): leave gradient_checkpointing, or give it one")
    cast(Any, network).enable_gradient_checkpointing()


def train(
    network: nn.Module,
    loss: Loss,
    batches: BatchesOf,
    plan: Plan,
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
        plan: all numbers.
        accelerator: where it runs.
        seed: of the dropout masks.
        checkpoints: where to go on from, and to write to.
        observe: told of every update.
        stop: asked after every update, counted from 1, whether to end before the plan does; given the network as it is.
        sharded: spread the network over the processes (see `progdist.sharding`).

    Returns:
        The network (a new one if it was spread), or its average where the plan has one; the updates made; and the
        seconds of training, all sessions together.

    Raises:
        NotFinite: more updates in a row than the plan's `most_skips` gave a loss or gradient that is not finite. None
            of them made a step, nothing is repaired; the last checkpoint is named.
        Interrupted: a signal asked for the end, and a checkpoint is kept.
        UserError: the batch does not divide among processes and microbatches.
    """
    parts = accelerator.num_processes * plan.microbatches
    if plan.batch % parts:
        raise UserError(f"batch {plan.batch} does not divide into {parts} (processes times microbatches)")
    if plan.gradient_checkpointing:
        recompute(network)
    if sharded and (plan.ema or accelerator.num_processes == 1):
        raise UserError("sharding needs several processes (torchrun), and no average of the weights: set ema to 0")
    plain = copy.deepcopy(network) if sharded else network
    device = accelerator.device
    prepared = shard(network.to(device), device) if sharded else accelerator.prepare(network)
    state = State(network, plan)
    if checkpoints is not None and (latest := agreed_checkpoint(checkpoints, accelerator)):
        try:
            state.restore(latest)
        except (LookupError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"{checkpoints.latest_path()} is of another network or another version of progdist ({reason}): start "
                "over with --fresh, or remove it to train this model anew"
            ) from error
    prepared.train(plan.dropout)
    share = plan.batch // accelerator.num_processes
    rows = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    started, value = time.perf_counter() - state.seconds, 0.0
    with PENDING.among_updates(), _own_generators(device):
        for batch in batches(state.update, plan.updates, rows):
            torch.manual_seed(seed + state.update * accelerator.num_processes + accelerator.process_index)
            value, norm, asked = _gradient(prepared, loss, batch, plan, accelerator)
            told = Progress(state.update + 1, value, norm, plan.rate(state.update), 0.0, state.skipped)
            due = state.update and (state.update % plan.checkpoint_every == 0 or asked)
            if checkpoints is not None and due and told.finite:
                checkpoints.save(state.checkpoint())  # its weights have just given a finite loss and gradient
            if asked:
                PENDING.stop()
            state.step() if told.finite else state.skip()
            if state.in_a_row > plan.most_skips:
                raise NotFinite(_explain(state.update, plan, value, norm, checkpoints))
            state.seconds = time.perf_counter() - started
            observe(replace(told, seconds=state.seconds, skipped=state.skipped))
            if stop(network, state.update):
                break
    if sharded:
        plain.load_state_dict(whole(network.state_dict()))
    if not all(parameter.isfinite().all() for parameter in plain.parameters()):
        raise NotFinite(_explain(state.update, plan, value, math.inf, checkpoints))
    return (plain if sharded else state.result()).eval(), state.update, state.seconds


def _own_generators(device: torch.device) -> AbstractContextManager[None]:
    """The context in which training may seed torch's generators, and after which they are the caller's again."""
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


def _gradient(
    network: nn.Module, loss: Loss, batch: Batch, plan: Plan, accelerator: Accelerator
) -> tuple[float, float, bool]:
    """Leave the gradient of the global batch's mean loss in the parameters.

    Returns:
        The loss, the gradient's norm, and whether any process was asked to stop: the same in all of them.
    """
    device = accelerator.device
    parts = [{} for _ in range(plan.microbatches)]
    for name, tensor in batch.items():
        placed = tensor if tensor.dtype == torch.float64 else tensor.to(device)  # times stay on the CPU
        for part, piece in zip(parts, placed.chunk(plan.microbatches), strict=True):
            part[name] = piece
    total = torch.zeros((), device=device)
    for number, part in enumerate(parts, 1):
        last = number == plan.microbatches
        with nullcontext() if last else accelerator.no_sync(network):
            with autocast(device, plan.precision):
                value = loss(network, part).float().mean() / plan.microbatches
            accelerator.backward(value)
        total += value.detach()
    norm = accelerator.clip_grad_norm_(network.parameters(), plan.clip or math.inf)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    asked = torch.full((), float(PENDING.asked is not None), device=device)
    mean, stops = cast(Tensor, accelerator.reduce(torch.stack([total, asked]), "mean"))
    return float(mean), float(norm), bool(stops)  # pyright: ignore[reportArgumentType]


def _explain(update: int, plan: Plan, value: float, norm: float, checkpoints: Checkpoints | None) -> str:
    last = checkpoints.latest_path() if checkpoints else None
    kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint of this stage yet"
    return (
        f"update {update} of {plan.updates}: loss {value:g} and gradient norm {norm:g} are not both finite; {kept}: "
        "lower the learning rate or use precision float32 with --set, and run again to continue"
    )
