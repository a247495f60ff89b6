"""Losses and gradients that are not finite: no step, and an end where they go on."""

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from progdist._utils.signals import SHUTDOWN, Interrupted
from progdist.training.batches import Batch
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.distributed import Processes
from progdist.training.loop import TrainContext, train
from progdist.training.records import NotFinite
from support.loop import CONFIG, batches, error, network


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
        train(module, poisoned, batches, config, TrainContext(Processes(), checkpoints=Checkpoints(tmp_path)))
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
    train(network(), poisoned, batches, config, TrainContext(Processes(), observe=records.append))
    assert torch.equal(seen[2], seen[3])
    assert torch.equal(seen[2], seen[4])
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[4], seen[5])
    assert [progress.skipped for progress in records] == [0, 0, 1, 2] + [2] * 8
    assert [progress.finite for progress in records] == [True, True, False, False] + [True] * 8
    assert [progress.update for progress in records] == list(range(1, 13))


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
    stop = lambda module, update: update == 120  # noqa: E731
    train(network(), loss, batches, config, TrainContext(Processes(), observe=records.append, stop=stop))
    assert records[-1].skipped == 3
    records, loss = skipping(range(100, 104))
    with pytest.raises(NotFinite):
        train(network(), loss, batches, config, TrainContext(Processes(), observe=records.append))


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
            context = TrainContext(Processes(), checkpoints=Checkpoints(tmp_path))
            train(network(), loss, batches, replace(CONFIG, checkpoint_every=100), context)
    finally:
        SHUTDOWN.requested = None
    assert Checkpoints(tmp_path).latest_path() == tmp_path / "00000008.safetensors"
