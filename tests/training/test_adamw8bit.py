"""AdamW with moments of 8 bits: a quarter of the memory, resumed bit for bit."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from progdist import UserError
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.distributed import Processes
from progdist.training.loop import TrainContext, train
from progdist.training.state import MAIN, State
from support.loop import CONFIG, batches, equal, error, trained

EIGHT_BITS = replace(CONFIG, optimizer="adamw8bit")


def wide() -> nn.Module:
    """A network with a tensor whose moments are of 8 bits, and small ones whose are not."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def test_moments_of_8_bits_take_a_quarter() -> None:
    """A byte of each moment and 4 for every 256 numbers, where AdamW's take 4 each; the weights come near AdamW's."""
    held = {}
    for config in (CONFIG, EIGHT_BITS):
        state = State(wide(), config)
        for parameter in state.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        before = state.parameters[2].detach().clone()
        state.step(torch.tensor(True), {MAIN: torch.tensor(2.0)})
        moments = {name: each for name, each in state.checkpoint().tensors.items() if name.startswith("optimizer.2.")}
        held[config.optimizer] = sum(each.nbytes for each in moments.values()), state.parameters[2].detach() - before
    bytes_of_8, step_of_8 = held["adamw8bit"]
    bytes_of_32, step_of_32 = held["adamw"]
    assert bytes_of_32 == 2 * 4 * 4096 + 4  # both moments, and the count of steps
    assert bytes_of_8 == 2 * (4096 + 4 * 16) + 8
    torch.testing.assert_close(step_of_8, step_of_32, rtol=0, atol=1e-4)  # of steps of the learning rate, 0.01


@pytest.mark.parametrize("stopped", [5, 10])
def test_a_training_with_8_bits_is_resumed_bit_for_bit(tmp_path: Path, stopped: int) -> None:
    uninterrupted, _ = trained(EIGHT_BITS, start=wide())
    with pytest.raises(RuntimeError, match="stop"):
        context = TrainContext(Processes(), checkpoints=Checkpoints(tmp_path), observe=stopping_at(stopped))
        train(wide(), error, batches, EIGHT_BITS, context)
    rest, _ = trained(EIGHT_BITS, Checkpoints(tmp_path), wide())
    assert equal(uninterrupted, rest)
    with pytest.raises(UserError, match="it was trained with another optimizer"):
        trained(CONFIG, Checkpoints(tmp_path), wide())


def stopping_at(update: int) -> Callable[[Progress], None]:
    def observe(progress: Progress) -> None:
        if progress.update == update:
            raise RuntimeError("stop")

    return observe


def test_an_update_of_8_bits_that_is_not_finite_changes_nothing() -> None:
    """Neither weights nor moments; the next one is as if it had not been."""
    states = [State(wide(), EIGHT_BITS) for _ in range(2)]
    for number, state in enumerate(states):
        for update in range(3):
            for parameter in state.parameters:
                parameter.grad = torch.full_like(parameter, 0.1 * update + 0.1)
            if number == 1 and update == 1:
                state.parameters[2].grad = torch.full_like(state.parameters[2], torch.inf)
                state.step(torch.tensor(False), {MAIN: torch.tensor(torch.inf)})
                state.update -= 1  # the same learning rates
                for parameter in state.parameters:
                    parameter.grad = torch.full_like(parameter, 0.1 * update + 0.1)
            state.step(torch.tensor(True), {MAIN: torch.tensor(0.5)})
    first, second = (state.checkpoint().tensors for state in states)
    assert equal(dict(first), dict(second))
    assert states[1].skips()[0] == 1


def test_8_bits_need_their_library_and_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="remove --shard"):
        train(wide(), error, batches, EIGHT_BITS, TrainContext(Processes(), sharded=True))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"extra `bnb`: pip install"):
        train(wide(), error, batches, EIGHT_BITS, TrainContext(Processes()))
