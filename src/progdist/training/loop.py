r"""One training loop for any loss: many processes, mixed precision, an average of the weights, checkpoints.

    g      = mean over the global batch of dloss/dtheta
    theta <- AdamW(theta, g / max(1, |g| / max_grad_norm)),    rate_k = rate min(1, (k+1)/warmup) (1 - k/K  if annealed)
    ema   <- theta at the first update, then decay ema + (1 - decay) theta

The loss is a function loss(network, batch) -> (B,), or such parts by name, some of which may train auxiliary networks;
only the loss and the batches know what a batch holds. Weight decay is decoupled and scaled by the rate, as in the
official code; with 0 this is Adam.

Whether an update is finite is decided on the device, and loss and norm stay there: only updates with a due record or
checkpoint wait for the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.signals import SHUTDOWN
from progdist.compute.cuda_graphs import check_available
from progdist.compute.precision import enable_gradient_checkpointing, outside_autocast
from progdist.training.batches import Batch
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import Processes, checksum_of, gather, load_agreed_checkpoint, shard
from progdist.training.gradients import Gradients, Loss
from progdist.training.records import Records, check_trained
from progdist.training.state import NO_AUXILIARIES, WRONG, Auxiliaries, State, copy_for_average

BatchesOf = Callable[[int, int, slice], Iterator[Batch]]
"""(first update, last update, rows of the global batch) -> batches."""


@dataclass(frozen=True)
class TrainContext:
    """Where a network is trained, and who observes it."""

    processes: Processes  # and the device
    seed: int = 0  # of what the network draws itself, e.g. dropout
    sharded: bool = False  # spread the network over the processes (see `progdist.training.distributed`)
    checkpoints: Checkpoints | None = None  # where to resume from and write to
    observe: Callable[[Progress], None] = lambda progress: None  # called at every `config.record_every`-th update
    stop: Callable[[nn.Module, int], bool] = lambda network, update: False  # (network, updates) -> whether to stop here


@dataclass(frozen=True)
class TrainResult:
    """A trained network."""

    network: nn.Module  # in evaluation mode; the EMA if the config has one, and a new network if it was sharded
    updates: int  # made, including skipped ones
    skipped: int  # without a step, since they were not finite
    seconds: float  # of training, over all sessions


def train(
    network: nn.Module,
    loss: Loss,  # called with the prepared network, so that gradients are averaged over processes
    batches: BatchesOf,  # rows are this process's share of the global batch
    config: TrainConfig,
    context: TrainContext,
    *,
    average: nn.Module | None = None,  # a copy to hold the EMA, for a loss that uses it; None to make one
    auxiliaries: Auxiliaries = NO_AUXILIARIES,  # networks of the loss to train, too, on the device
    dropout: bool = False,  # whether the network's dropout is on
) -> TrainResult:
    """Train a network in place, from its latest checkpoint if there is one.

    Frozen parameters stay frozen, unless all are, as in a network prepared for sampling.

    Raises:
        NotFinite: more than `config.max_skipped_updates` consecutive updates made no step, or the last half of all
            updates did not; the message names the last checkpoint.
        Interrupted: a signal asked to stop, and a checkpoint is saved.
        UserError: as in `check_processes` and `check_parameters`; or processes start with different weights, or the
            latest checkpoint belongs to another network. Whatever the batches or `observe` raise, a checkpoint of the
            last step is saved first.
    """
    processes, checkpoints, sharded = context.processes, context.checkpoints, context.sharded
    check_processes(config, processes.num_processes, sharded=sharded)
    check_parameters(network)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        network.requires_grad_(True)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(network)
    plain, device = copy_for_average(network) if sharded else network, processes.device
    network.to(device)
    if processes.num_processes > 1:
        processes.agree(checksum_of(network), DIFFERENT_WEIGHTS)
    if sharded:
        shard(network, device, frozen_parameters(network) if config.lora_rank else ())
    state = State(network, config, average.to(device) if average is not None else None, auxiliaries)
    if checkpoints is not None:
        _restore(state, checkpoints, processes)
    network.train(dropout)
    gradients = Gradients(state, loss, processes, context.seed, dropout=dropout)
    records = Records(state, config, processes, checkpoints, context.observe)
    share, index = config.batch // processes.num_processes, processes.process_index
    with SHUTDOWN.deferred_signals(), torch.enable_grad(), outside_autocast(device), records.kept_on_failure():
        for batch in batches(state.update, config.updates, slice(index * share, (index + 1) * share)):
            gradient = gradients(batch)
            due = records.read(gradient) if records.due() else None
            state.step(gradient.finite, gradient.norms)
            if due:
                records.report(due)
            if context.stop(network, state.update):
                break
    gradients.release()
    if sharded:
        frozen = {name for name, each in plain.named_parameters(remove_duplicate=False) if not each.requires_grad}
        trained = {name: each for name, each in network.state_dict().items() if name not in frozen}
        plain.load_state_dict(gather(trained), strict=False)
    check_trained(state, plain, checkpoints)
    return TrainResult(
        (plain if sharded else state.result()).eval(), state.update, int(state.skipped), records.seconds()
    )


DIFFERENT_WEIGHTS = (
    "the network of process {process} has other weights than that of process 0: give every process the same teacher "
    "(load it from one file, or seed torch before making it)"
)


def frozen_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Those of a base, which a low-rank student shares with its teacher: spread, they would be held once more."""
    return [each for each in network.parameters() if not each.requires_grad]


def check_parameters(network: nn.Module) -> None:
    """Refuse a network without trainable parameters, or with parameters that cannot be trained."""
    parameters = list(network.named_parameters())
    if not parameters:
        raise UserError(f"{type(network).__name__} has no parameters, and a student shares its teacher's network")
    for name, parameter in parameters:
        if isinstance(parameter, nn.UninitializedParameter):
            raise UserError(f"parameter {name} has no shape yet: call the network once on an example first")
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError("a torch.jit.ScriptModule cannot be trained: pass the module that it was scripted from")
    trained = [pair for pair in parameters if pair[1].requires_grad] or parameters
    for name, parameter in trained:
        if not parameter.is_floating_point():
            raise UserError(
                f"parameter {name} is {str(parameter.dtype).removeprefix('torch.')}, expected a floating-point type: "
                "split it into two real ones (torch.view_as_real), or freeze it (requires_grad_(False))"
            )


def check_processes(config: TrainConfig, processes: int, *, sharded: bool) -> None:
    """Raise a UserError for options that this many processes cannot train with, or CUDA graphs without CUDA."""
    parts = processes * config.gradient_accumulation_steps
    if config.batch % parts:
        raise UserError(
            f"batch {config.batch} is not divisible by {parts} (processes times gradient_accumulation_steps): change it"
        )
    if config.cuda_graphs:
        check_available()
        if processes > 1:
            raise UserError("cuda_graphs requires a single process: set it to false")
    if sharded and config.optimizer == "adamw8bit":
        raise UserError("optimizer adamw8bit cannot train a sharded network: remove --shard, or use adamw")
    if sharded and (config.ema or processes == 1):
        raise UserError("sharding requires several processes (torchrun), and no average of the weights: set ema to 0")


def _restore(state: State, checkpoints: Checkpoints, processes: Processes) -> None:
    latest = load_agreed_checkpoint(checkpoints, processes)
    try:
        if latest is not None:
            state.restore(latest)
    except WRONG as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{checkpoints.latest_path()} belongs to another network or another version of progdist ({reason}): start "
            "over with --fresh, or remove it to train this model again"
        ) from error
