"""Networks that are trained beside the main one: their steps, checkpoints, and what several processes make of them."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from progdist import UserError
from progdist.training.batches import Batch
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.distributed import Processes
from progdist.training.gradients import Loss
from progdist.training.loop import TrainContext, train
from progdist.training.records import NotFinite
from support.loop import CONFIG, batches, equal, error, network

SLOW = replace(CONFIG, learning_rate=3e-3, adam_beta1=0.0, adam_beta2=0.99)


def critic() -> nn.Module:
    torch.manual_seed(2)
    return nn.Linear(1, 1)


def duel(other: nn.Module, *, spoiled: int | None = None) -> Loss:
    """A regression, and a second network that learns what the first one makes; neither sees the other's gradient."""
    calls = iter(range(1000))

    def loss(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        made = module(batch["x"])
        judged = other(made.detach()) * (math.nan if next(calls) == spoiled else 1.0)
        return {"error": (made - batch["y"]).square().mean(1), "critic": (judged - batch["y"]).square().mean(1)}

    return loss


def trained(
    folder: Path | None = None, *, stop: int | None = None, spoiled: int | None = None, ema: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Progress]]:
    """Weights of both networks, and the records."""
    module, other, records = network(), critic(), list[Progress]()
    context = TrainContext(
        Processes(),
        checkpoints=Checkpoints(folder) if folder else None,
        observe=records.append,
        stop=lambda module, update: update == stop,
    )
    loss = duel(other, spoiled=spoiled)
    config = replace(CONFIG, ema=ema)
    result = train(module, loss, batches, config, context, auxiliaries={"critic": (other, SLOW)})
    return dict(result.network.state_dict()), dict(other.state_dict()), records


def test_the_main_network_learns_as_it_does_alone() -> None:
    """A loss of the other's weights alone changes nothing for it: bit for bit, clipping and average and all."""
    alone = train(network(), error, batches, replace(CONFIG, ema=0.9), TrainContext(Processes())).network
    beside, _, records = trained(ema=0.9)
    assert equal(dict(alone.state_dict()), beside)
    assert records[0].losses.keys() == {"error", "critic"}
    assert sum(records[0].losses.values()) == pytest.approx(records[0].loss)


def test_the_other_takes_the_steps_of_its_own_adam() -> None:
    """Written out with torch's AdamW at its own rate and betas, clipped by its own norm."""
    module, other = network().eval(), critic()
    expected = copy.deepcopy(other)
    main = torch.optim.AdamW(module.parameters(), CONFIG.learning_rate, weight_decay=0.0, fused=True)
    optimizer = torch.optim.AdamW(expected.parameters(), SLOW.learning_rate, (0.0, 0.99), weight_decay=0.0, fused=True)
    for batch in batches(0, CONFIG.updates, slice(0, 8)):
        made = module(batch["x"])
        (made - batch["y"]).square().mean().backward()
        (expected(made.detach()) - batch["y"]).square().mean().backward()
        for each, stepper in ((module, main), (expected, optimizer)):
            nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            stepper.step()
            stepper.zero_grad()
    _, weights, _ = trained()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stopped", [3, 4, 9])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, stopped: int) -> None:
    """Both networks and both optimizers, bit for bit."""
    first, second, records = trained(tmp_path / "whole", ema=0.5)
    trained(tmp_path / "parts", stop=stopped, ema=0.5)
    again, other, later = trained(tmp_path / "parts", ema=0.5)
    assert equal(first, again)
    assert equal(second, other)
    assert [each.losses for each in records[-len(later) :]] == [each.losses for each in later]


def test_a_checkpoint_holds_both_and_is_refused_without_the_other(tmp_path: Path) -> None:
    trained(tmp_path, stop=9)
    checkpoint = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    names = {name.split(".")[0] for name in checkpoint.tensors}
    assert names == {"network", "optimizer", "critic"}
    assert {"critic.network.weight", "critic.optimizer.0.exp_avg"} <= checkpoint.tensors.keys()
    with pytest.raises(UserError, match="another network"):
        train(network(), error, batches, CONFIG, TrainContext(Processes(), checkpoints=Checkpoints(tmp_path)))


def test_an_update_is_finite_for_all_or_for_none() -> None:
    """Where the other's loss is not, neither network makes a step."""
    _, _, records = trained(spoiled=3)
    assert records[-1].skipped == 1
    assert not math.isfinite(records[3].losses["critic"])
    with pytest.raises(NotFinite):
        module, other = network(), critic()
        nn.init.constant_(next(other.parameters()), math.nan)
        train(
            module, duel(other), batches, CONFIG, TrainContext(Processes()), auxiliaries={"critic": (other, SLOW)}
        )  # fmt: skip
