"""The loop against its equations: resuming, averaging, clipping, rates, and refusing what is not finite."""

import copy
import math
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from progdist import UserError
from progdist._utils.signals import SHUTDOWN, Interrupted
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoint, Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.loop import Batch, train
from progdist.training.records import NotFinite, Records
from progdist.training.state import State

CONFIG = TrainConfig(updates=12, batch=8, learning_rate=1e-2, checkpoint_every=4, precision="float32")


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))


def batches(first: int, last: int, rows: slice) -> Iterator[Batch]:
    for update in range(first, last):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(update))[rows]
        yield {"x": x, "y": x.sum(1, keepdim=True).sin()}


def error(module: nn.Module, batch: Batch) -> Tensor:
    return (module(batch["x"]) - batch["y"]).square().mean(1)


def trained(config: TrainConfig, checkpoints: Checkpoints | None = None, start: nn.Module | None = None) -> tuple:
    records: list[Progress] = []
    module, _, _ = train(
        start or network(), error, batches, config,
        accelerator=Accelerator(), checkpoints=checkpoints, observe=records.append,
    )  # fmt: skip
    return dict(module.state_dict()), records


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_nothing_keeps_a_network_that_was_trained() -> None:
    accelerator, module = Accelerator(), network()
    train(module, error, batches, replace(CONFIG, updates=1), accelerator=accelerator)
    held = weakref.ref(module)
    del module
    assert held() is None


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stopped", [1, 4, 7, 11])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, ema: float, stopped: int) -> None:
    """Bit for bit, dropout and average and all, wherever it was stopped."""
    config = replace(CONFIG, ema=ema, dropout=True, lr_scheduler="linear", warmup=3)
    uninterrupted, records = trained(config)

    class Stop(Exception):
        pass

    def until(progress: Progress) -> None:
        if progress.update == stopped:
            raise Stop

    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Stop):
        train(network(), error, batches, config, accelerator=Accelerator(), checkpoints=checkpoints, observe=until)
    rest, later_records = trained(config, checkpoints)
    assert equal(uninterrupted, rest)
    first = 4 * ((stopped - 1) // 4)  # a checkpoint is written after the callback is called
    assert [progress.update for progress in later_records] == list(range(first + 1, 13))
    assert [p.loss for p in records[first:]] == [p.loss for p in later_records]


def test_a_loss_that_looks_at_the_average_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    """The module that is given holds the average of every update, and that of the checkpoint after a resume."""
    config, losses = replace(CONFIG, ema=0.5), []

    def self_taught(stop_at: int) -> dict[str, Tensor]:
        module = network().eval()
        average = copy.deepcopy(module)

        def loss(learning: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                target = average(batch["x"])
            each = error(learning, batch) + (learning(batch["x"]) - target).square().mean(1)
            losses.append(each.detach().mean().item())
            return each

        result, _, _ = train(
            module, loss, batches, config, accelerator=Accelerator(), checkpoints=Checkpoints(tmp_path / str(stop_at)),
            average=average, stop=lambda module, update: update == stop_at,
        )  # fmt: skip
        assert result is average
        return dict(result.state_dict())

    uninterrupted = self_taught(12)
    whole, losses[:] = list(losses), []
    Checkpoints(tmp_path / "12").clear()
    self_taught(7)
    (tmp_path / "7").rename(tmp_path / "12")
    del losses[4:]  # since the checkpoint
    assert equal(self_taught(12), uninterrupted)
    assert losses == whole
    assert len(whole) == 12


def test_microbatches_change_nothing() -> None:
    uninterrupted, _ = trained(CONFIG)
    parts, _ = trained(replace(CONFIG, gradient_accumulation_steps=4))
    for key, value in uninterrupted.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="does not divide"):
        trained(replace(CONFIG, gradient_accumulation_steps=3))


def test_one_update_is_adamw() -> None:
    """theta - rate wd theta - rate sign-like step, written out."""
    config = replace(CONFIG, updates=1, weight_decay=0.1, max_grad_norm=0.0)
    before = network()
    after, _ = trained(config, start=copy.deepcopy(before))
    batch = next(batches(0, 1, slice(0, 8)))
    error(before.eval(), batch).mean().backward()
    for key, parameter in before.named_parameters():
        assert parameter.grad is not None
        step = parameter.grad / (parameter.grad.abs() + 1e-8)
        expected = parameter * (1 - 1e-2 * 0.1) - 1e-2 * step
        torch.testing.assert_close(after[key], expected, rtol=1e-5, atol=1e-6)


def test_the_rate_rises_and_falls() -> None:
    config = replace(CONFIG, updates=10, learning_rate=1.0, warmup=4, lr_scheduler="linear")
    assert [config.learning_rate_at(k) for k in (0, 1, 3, 5, 9)] == pytest.approx([0.25, 0.5 * 0.9, 0.7, 0.5, 0.1])
    assert replace(config, warmup=0, lr_scheduler="constant").learning_rate_at(9) == 1
    _, records = trained(replace(CONFIG, warmup=4, lr_scheduler="linear"))
    assert [p.learning_rate for p in records] == [
        replace(CONFIG, warmup=4, lr_scheduler="linear").learning_rate_at(k) for k in range(12)
    ]


def test_the_average_begins_as_a_copy() -> None:
    """ema_1 = theta_1, then decay ema + (1 - decay) theta: rebuilt from the weights after each update."""
    states = [trained(replace(CONFIG, updates=count))[0] for count in (1, 2, 3)]
    averages = [trained(replace(CONFIG, updates=count, ema=0.9))[0] for count in (1, 2, 3)]
    assert equal(states[0], averages[0])
    expected = states[0]
    for state, average in zip(states[1:], averages[1:], strict=True):
        expected = {key: 0.9 * expected[key] + 0.1 * state[key] for key in state}
        for key, value in expected.items():
            torch.testing.assert_close(average[key], value, rtol=1e-5, atol=1e-7)


def test_the_whole_gradient_is_clipped_at_once() -> None:
    """Adam's step hides the scale of a gradient: its first moment, 0.1 g after one update, does not."""
    seen: list[float] = []
    module = nn.Linear(3, 1)
    original = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, closure: None = None) -> None:
        original(self)
        moments = [self.state[p]["exp_avg"].flatten() for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.cat(moments).norm() / 0.1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        _, records = trained(replace(CONFIG, updates=1, max_grad_norm=1e-3), start=copy.deepcopy(module))
        assert seen == pytest.approx([1e-3])
        assert records[0].gradient_norm > 1e-2
        seen.clear()
        _, records = trained(replace(CONFIG, updates=1, max_grad_norm=0.0), start=module)
        assert seen == pytest.approx([records[0].gradient_norm])


def test_bf16_runs_the_network_in_bf16_and_keeps_the_weights_whole() -> None:
    dtypes: list[torch.dtype] = []

    class Spy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            output = super().forward(input)
            dtypes.append(output.dtype)
            return output

    state, _ = trained(replace(CONFIG, precision="bf16"), start=Spy(3, 1))
    assert set(dtypes) == {torch.bfloat16}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_dropout_is_at_work_only_where_it_is_asked_for() -> None:
    assert not equal(trained(replace(CONFIG, dropout=True))[0], trained(CONFIG)[0])
    assert equal(trained(CONFIG)[0], trained(CONFIG)[0])


@pytest.mark.parametrize("skips", [0, 3])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_training(tmp_path: Path, bad: str, skips: int) -> None:
    module, count = network(), 0

    def poisoned(module: nn.Module, batch: Batch) -> Tensor:
        nonlocal count
        count += 1
        loss = error(module, batch)
        if count <= 6:
            return loss
        return loss * math.nan if bad == "loss" else loss + (loss - loss.detach()).abs().sqrt() * 0

    config = replace(CONFIG, max_skipped_updates=skips)
    with pytest.raises(NotFinite) as caught:
        train(module, poisoned, batches, config, accelerator=Accelerator(), checkpoints=Checkpoints(tmp_path))
    assert f"update {7 + skips} of 12" in str(caught.value)
    assert str(tmp_path / "00000004.safetensors") in str(caught.value)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert Checkpoints(tmp_path).latest_path() == tmp_path / "00000004.safetensors"


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_update_that_is_not_finite_makes_no_step(ema: float) -> None:
    """Weights, average and moments are as before it; its place in the order of batches is used up."""
    seen: list[Tensor] = []
    records: list[Progress] = []

    def poisoned(module: nn.Module, batch: Batch) -> Tensor:
        seen.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
        return error(module, batch) * (math.inf if len(seen) in (3, 4) else 1)

    config = replace(CONFIG, ema=ema, max_skipped_updates=2)
    train(network(), poisoned, batches, config, accelerator=Accelerator(), observe=records.append)
    assert torch.equal(seen[2], seen[3])
    assert torch.equal(seen[2], seen[4])
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[4], seen[5])
    assert [progress.skipped for progress in records] == [0, 0, 1, 2] + [2] * 8
    assert [progress.finite for progress in records] == [True, True, False, False] + [True] * 8
    assert [progress.update for progress in records] == list(range(1, 13))


def test_a_checkpoint_of_another_network_is_one_line(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(Checkpoint(4, {"network.a": torch.zeros(2)}, {"seconds": 1.0, "skipped": 0}))
    with pytest.raises(UserError, match="another network or another version"):
        trained(CONFIG, Checkpoints(tmp_path))


def test_it_ends_when_told_to_stop() -> None:
    calls: list[int] = []

    def stop(module: nn.Module, update: int) -> bool:
        calls.append(update)
        return update == 3

    _, updates, _ = train(network(), error, batches, TrainConfig(9, 8, 1e-2), accelerator=Accelerator(), stop=stop)
    assert (updates, calls) == (3, [1, 2, 3])


def test_what_is_skipped_between_records_counts() -> None:
    """Records of 3,000 updates are three apart: the updates between them are counted, and too many in a row stop."""

    def skipping(bad: range) -> tuple[list[Progress], Callable[[nn.Module, Batch], Tensor]]:
        count = -1

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            nonlocal count
            count += 1
            return error(module, batch) * (math.nan if count in bad else 1)

        return [], loss

    config = replace(CONFIG, updates=3000, max_skipped_updates=3)
    assert config.record_every == 3
    records, loss = skipping(range(100, 103))
    accelerator, stop = Accelerator(), lambda module, update: update == 120
    train(network(), loss, batches, config, accelerator=accelerator, observe=records.append, stop=stop)
    assert records[-1].skipped == 3
    records, loss = skipping(range(100, 104))
    with pytest.raises(NotFinite):
        train(network(), loss, batches, config, accelerator=Accelerator(), observe=records.append)


def test_a_signal_at_an_update_that_is_not_finite_keeps_the_next_one(tmp_path: Path) -> None:
    count = 0

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        nonlocal count
        count += 1
        if count == 7:
            SHUTDOWN.requested = signal.SIGTERM
        return error(module, batch) * (math.nan if count in (7, 8) else 1)

    try:
        with pytest.raises(Interrupted):
            train(network(), loss, batches, replace(CONFIG, checkpoint_every=100), accelerator=Accelerator(),
                  checkpoints=Checkpoints(tmp_path))  # fmt: skip
    finally:
        SHUTDOWN.requested = None
    assert Checkpoints(tmp_path).latest_path() == tmp_path / "00000008.safetensors"


def test_processes_agree_on_a_signal_every_few_updates() -> None:
    config, state = replace(CONFIG, updates=100_000), State(network(), CONFIG)
    accelerator = SimpleNamespace(num_processes=2)
    records = Records(state, config, cast(Accelerator, accelerator), None, lambda progress: None)
    due = []
    for update in range(200):
        state.update = update
        due.append(records.due())
    assert [number + 1 for number, each in enumerate(due) if each] == list(range(10, 201, 10))


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
        state.step(torch.tensor(True), torch.tensor(2.0))
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
        train(
            wide(), error, batches, EIGHT_BITS,
            accelerator=Accelerator(), checkpoints=Checkpoints(tmp_path), observe=stopping_at(stopped),
        )  # fmt: skip
    rest, _ = trained(EIGHT_BITS, Checkpoints(tmp_path), wide())
    assert equal(uninterrupted, rest)
    with pytest.raises(UserError, match="its optimizer was another one"):
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
                state.step(torch.tensor(False), torch.tensor(torch.inf))
                state.update -= 1  # the same learning rates
                for parameter in state.parameters:
                    parameter.grad = torch.full_like(parameter, 0.1 * update + 0.1)
            state.step(torch.tensor(True), torch.tensor(0.5))
    first, second = (state.checkpoint().tensors for state in states)
    assert equal(dict(first), dict(second))
    assert states[1].skips()[0] == 1


def test_8_bits_need_their_library_and_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="leave --shard"):
        train(wide(), error, batches, EIGHT_BITS, accelerator=Accelerator(), sharded=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"extra `bnb`: pip install"):
        train(wide(), error, batches, EIGHT_BITS, accelerator=Accelerator())
