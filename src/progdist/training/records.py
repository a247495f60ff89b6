"""The numbers of an update, read from the device only when a record or a checkpoint is due."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from progdist._utils.errors import UserError
from progdist._utils.signals import SHUTDOWN
from progdist._utils.words import counted
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import Processes
from progdist.training.gradients import Gradient
from progdist.training.state import State


class NotFinite(UserError):
    """A loss or gradient that is not finite."""


AGREE_EVERY = 10  # updates between checks whether any of several processes has received a signal


class Records:
    """Reads an update's numbers from the device when a record or a checkpoint is due."""

    def __init__(
        self,
        state: State,
        config: TrainConfig,
        processes: Processes,
        checkpoints: Checkpoints | None,
        observe: Callable[[Progress], None],
    ) -> None:
        self.state, self.config, self.processes = state, config, processes
        self.checkpoints, self.observe = checkpoints, observe
        self.started = time.perf_counter() - state.seconds

    def seconds(self) -> float:
        """Seconds of training, over all sessions."""
        return time.perf_counter() - self.started

    def due(self) -> bool:
        """Whether the numbers of the current update are read: the same in all processes."""
        number, config = self.state.update + 1, self.config
        alone = self.processes.num_processes == 1
        return (
            number % config.record_every == 0
            or number == config.updates
            or self._checkpoint_due()
            or (SHUTDOWN.requested is not None if alone else number % AGREE_EVERY == 0)
        )

    def _checkpoint_due(self) -> bool:
        return self.checkpoints is not None and self.state.update % self.config.checkpoint_every == 0

    def read(self, gradient: Gradient) -> Progress:
        """The numbers of the current update, before its step; a due checkpoint is written. Raises: Interrupted."""
        value = gradient.loss
        signals = torch.full_like(value, float(SHUTDOWN.requested is not None))
        if self.processes.num_processes > 1:
            signals = self.processes.reduce(signals, "sum")
        norm, *others = (norm.to(value) for norm in gradient.norms.values())
        numbers = torch.stack([value, norm, signals, *gradient.parts.values(), *others]).tolist()
        loss, gradient_norm, stops, *rest = numbers
        update, parts = self.state.update, dict(zip(gradient.parts, rest, strict=False))
        rate = self.config.learning_rate_at(update)
        progress = Progress(update + 1, loss, gradient_norm, rate, 0.0, losses=parts)
        finite = all(map(math.isfinite, numbers))
        if self.checkpoints is not None and update and (self._checkpoint_due() or stops) and finite:
            self.state.seconds = self.seconds()
            self.checkpoints.save(self.state.checkpoint())  # its weights have just given a finite loss and gradient
        if stops and (finite or self.checkpoints is None or not update):
            SHUTDOWN.stop()  # an update that is not finite leaves nothing to save: wait for the next one
        return progress

    def report(self, progress: Progress) -> None:
        """Pass the numbers to `observe`, after the step; raises NotFinite if too many in a row made no step."""
        skipped, in_a_row = self.state.skips()
        if in_a_row > self.config.max_skipped_updates:
            loss, norm = progress.loss, progress.gradient_norm
            raise NotFinite(explain(self.state, loss, norm, self.checkpoints))
        self.observe(replace(progress, seconds=self.seconds(), skipped=skipped))

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Save the last step as a checkpoint if the data, the disk or an observer fails between two steps."""
        try:
            yield
        except NotFinite:
            raise
        except (Exception, SystemExit):  # user code may raise anything; a closed terminal is a SystemExit
            with suppress(OSError, RuntimeError):  # report the failure itself
                self._keep()
            raise

    def _keep(self) -> None:
        """Write a checkpoint of the last step, if it is whole and finite; a sharded network has none."""
        parameters = [each for learner in self.state.learners.values() for each in learner.parameters]
        if self.checkpoints is None or not self.state.update or not self.state.whole:
            return
        if any(isinstance(each, DTensor) for each in parameters):
            return
        if all(bool(each.isfinite().all()) for each in parameters):
            self.state.seconds = self.seconds()
            self.checkpoints.save(self.state.checkpoint())


def check_trained(state: State, network: nn.Module, checkpoints: Checkpoints | None) -> None:
    """Raise NotFinite if a finished training made no step, or none in the last half of its updates."""
    skipped = int(state.skipped_in_a_row)
    if skipped and skipped * 2 >= state.update:
        raise NotFinite(explain(state, math.nan, math.nan, checkpoints))
    if not all(parameter.isfinite().all() for parameter in network.parameters() if parameter.requires_grad):
        raise NotFinite(explain(state, math.nan, math.inf, checkpoints))


def explain(state: State, value: float, norm: float, checkpoints: Checkpoints | None) -> str:
    """The message about an update that is not finite, although the data and the weights before it are."""
    last, update, config = checkpoints.latest_path() if checkpoints else None, state.update, state.config
    if int(state.skipped) >= update:
        return (
            f"none of {counted(update, 'update')} had a finite loss ({value:g}) and gradient norm ({norm:g}): the "
            "teacher's output or the weighting is not finite on these data, or precision bf16 is too coarse for them"
        )
    kept = f"the last good checkpoint is {last}" if last else "this stage has no checkpoint yet"
    return (
        f"update {update} of {config.updates}: loss {value:g} and gradient norm {norm:g} are not both finite; {kept}: "
        "lower the learning rate or use precision float32"
    )
