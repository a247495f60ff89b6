"""The loop against its equations: resuming, averaging, clipping, rates, and refusing what is not finite."""

import copy
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from progdist import UserError
from progdist.training.batches import Batch
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoint, Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import Processes
from progdist.training.loop import TrainContext, train
from progdist.training.records import Records
from progdist.training.state import State
from support.loop import CONFIG, batches, equal, error, network, trained


def test_nothing_keeps_a_network_that_was_trained() -> None:
    accelerator, module = Processes(), network()
    train(module, error, batches, replace(CONFIG, updates=1), TrainContext(accelerator))
    held = weakref.ref(module)
    del module
    assert held() is None


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stopped", [1, 4, 7, 11])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, ema: float, stopped: int) -> None:
    """Bit for bit, dropout and average and all, wherever it was stopped."""
    config = replace(CONFIG, ema=ema, lr_scheduler="linear", warmup=3)
    uninterrupted, records = trained(config, dropout=True)

    class Stop(BaseException):
        """As a signal: nothing more is kept."""

    def until(progress: Progress) -> None:
        if progress.update == stopped:
            raise Stop

    checkpoints = Checkpoints(tmp_path)
    context = TrainContext(Processes(), checkpoints=checkpoints, observe=until)
    with pytest.raises(Stop):
        train(network(), error, batches, config, context, dropout=True)
    rest, later_records = trained(config, checkpoints, dropout=True)
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

        context = TrainContext(
            Processes(),
            checkpoints=Checkpoints(tmp_path / str(stop_at)),
            stop=lambda module, update: update == stop_at,
        )
        result = train(module, loss, batches, config, context, average=average)
        assert result.network is average
        return dict(average.state_dict())

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
    with pytest.raises(UserError, match="is not divisible by 3 gradient_accumulation_steps"):
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
    on, off = (trained(CONFIG, dropout=each)[0] for each in (True, False))
    assert not equal(on, off)
    assert equal(on, trained(CONFIG, dropout=True)[0])
    plain = train(network(), error, batches, CONFIG, TrainContext(Processes())).network  # by default it is not
    assert equal(off, dict(plain.state_dict()))


def test_each_part_of_a_batch_has_its_own_conditions() -> None:
    """Gradient accumulation takes the rows of every condition, of whatever shape and precision."""

    def with_conditions(first: int, last: int, rows: slice) -> Iterator[Batch]:
        for batch in batches(first, last, rows):
            first_column = batch["x"][:, 0]
            yield batch | {"frame": batch["x"][:, :2].half(), "age": first_column.double(), "text": batch["x"][:, None]}

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        assert torch.equal(batch["frame"], batch["x"][:, :2].half())
        assert torch.equal(batch["age"], batch["x"][:, 0].double())
        assert torch.equal(batch["text"], batch["x"][:, None])
        sizes.append(len(batch["text"]))
        return error(module, batch)

    sizes: list[int] = []
    config = replace(CONFIG, gradient_accumulation_steps=4)
    result = train(network(), loss, with_conditions, config, TrainContext(Processes()))
    assert sizes == [2] * 48
    assert equal(dict(result.network.state_dict()), trained(config)[0])


def test_a_checkpoint_of_another_network_is_one_line(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(Checkpoint(4, {"network.a": torch.zeros(2)}, {"seconds": 1.0, "skipped": 0}))
    with pytest.raises(UserError, match="another network or another version"):
        trained(CONFIG, Checkpoints(tmp_path))


def test_it_ends_when_told_to_stop() -> None:
    calls: list[int] = []

    def stop(module: nn.Module, update: int) -> bool:
        calls.append(update)
        return update == 3

    result = train(network(), error, batches, TrainConfig(9, 8, 1e-2), TrainContext(Processes(), stop=stop))
    assert (result.updates, calls) == (3, [1, 2, 3])


def test_processes_agree_on_a_signal_every_few_updates() -> None:
    config, state = replace(CONFIG, updates=100_000), State(network(), CONFIG)
    accelerator = SimpleNamespace(num_processes=2)
    records = Records(state, config, cast(Processes, accelerator), None, lambda progress: None)
    due = []
    for update in range(200):
        state.update = update
        due.append(records.due())
    assert [number + 1 for number, each in enumerate(due) if each] == list(range(10, 201, 10))
