"""A small regression for `train`: network, batches and loss, and a training from beginning to end."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from progdist.training.batches import Batch
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig
from progdist.training.distributed import Processes
from progdist.training.loop import TrainContext, train

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


def trained(
    config: TrainConfig,
    checkpoints: Checkpoints | None = None,
    start: nn.Module | None = None,
    *,
    dropout: bool = False,
) -> tuple:
    records: list[Progress] = []
    context = TrainContext(Processes(), checkpoints=checkpoints, observe=records.append)
    result = train(start or network(), error, batches, config, context, dropout=dropout)
    return dict(result.network.state_dict()), records


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
