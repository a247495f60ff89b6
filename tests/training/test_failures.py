"""What fails between two updates loses none that were made: a checkpoint is kept, and the failure itself is told."""

import errno
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
from progdist.training.state import Learner, State
from support.loop import CONFIG, batches, equal, error, network, trained

SPARSE = replace(CONFIG, checkpoint_every=100, ema=0.9)


def broken(first: int, last: int, rows: slice) -> Iterator[Batch]:
    """A data set of which one image cannot be read: that of update 8."""
    for update, batch in zip(range(first, last), batches(first, last, rows), strict=True):
        if update == 7:
            raise UserError("image 7.png cannot be read")
        yield batch


def test_a_file_that_is_damaged_in_mid_training_costs_no_update(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"7\.png"):
        train(network(), error, broken, SPARSE, TrainContext(Processes(), checkpoints=checkpoints))
    assert checkpoints.latest_update() == 7
    resumed, records = trained(SPARSE, checkpoints)
    assert [record.update for record in records] == list(range(8, 13))
    assert equal(resumed, trained(SPARSE)[0])


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left"), BrokenPipeError(), RuntimeError("of a tracker"), SystemExit(1)]
)
def test_whoever_watches_may_fail(tmp_path: Path, failure: BaseException) -> None:
    def observe(progress: Progress) -> None:
        if progress.update == 5:
            raise failure

    context = TrainContext(Processes(), checkpoints=Checkpoints(tmp_path), observe=observe)
    with pytest.raises(type(failure)):
        train(network(), error, batches, SPARSE, context)
    assert context.checkpoints is not None
    assert context.checkpoints.latest_update() == 5


def test_a_full_disk_is_what_is_told_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoints.save

    def full(self: Checkpoints, checkpoint: Checkpoint) -> None:
        if checkpoint.update > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
        save(self, checkpoint)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        train(network(), error, batches, CONFIG, TrainContext(Processes(), checkpoints=Checkpoints(tmp_path)))
    assert Checkpoints(tmp_path).latest_update() == 4


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    module = network()

    def spoiled(first: int, last: int, rows: slice) -> Iterator[Batch]:
        for update, batch in enumerate(broken(first, last, rows)):
            yield batch
            if update == 6:
                with torch.no_grad():
                    next(module.parameters()).fill_(math.nan)

    with pytest.raises(UserError, match=r"7\.png"):
        train(module, error, spoiled, SPARSE, TrainContext(Processes(), checkpoints=Checkpoints(tmp_path)))
    assert Checkpoints(tmp_path).latest_update() == 0


def test_half_a_step_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update_average = Learner._update_average

    def fails(self: Learner, steps: Tensor, finite: Tensor) -> None:
        if steps == 5:
            raise torch.OutOfMemoryError("out of memory")
        update_average(self, steps, finite)

    monkeypatch.setattr(Learner, "_update_average", fails)
    with pytest.raises(torch.OutOfMemoryError):
        train(network(), error, batches, SPARSE, TrainContext(Processes(), checkpoints=Checkpoints(tmp_path)))
    assert Checkpoints(tmp_path).latest_update() == 0


@pytest.mark.parametrize(
    "numbers",
    [{}, {"seconds": "long", "skipped": 0}, {"seconds": 1.0, "skipped": []}, {"seconds": None, "skipped": 10**400}],
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, numbers: dict[str, object]) -> None:
    checkpoints = Checkpoints(tmp_path)
    module: nn.Module = network()
    checkpoints.save(Checkpoint(4, dict(State(module, TrainConfig(4, 8, 1e-3)).checkpoint().tensors), numbers))
    with pytest.raises(UserError, match="another version of progdist"):
        train(module, error, batches, CONFIG, TrainContext(Processes(), checkpoints=checkpoints))
