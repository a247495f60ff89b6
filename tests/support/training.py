"""Three updates of a small network, and what networks hold."""

import torch
from torch import Tensor, nn

from progdist.training.batches import Batch
from progdist.training.config import TrainConfig
from progdist.training.distributed import Processes
from progdist.training.loop import TrainContext, train

CONFIG = TrainConfig(updates=3, batch=4, learning_rate=1e-3, precision="float32")


def _batches(first: int, last: int, rows: slice) -> list[Batch]:
    draws = (torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(first, last))
    return [{"x": draw[rows]} for draw in draws]


def _loss(network: nn.Module, batch: Batch) -> Tensor:
    return (network(batch["x"], torch.zeros(len(batch["x"]))).sample - 1).square().flatten(1).mean(1)


def train_briefly(network: nn.Module, config: TrainConfig = CONFIG) -> nn.Module:
    return train(network, _loss, _batches, config, TrainContext(Processes())).network  # pyright: ignore[reportArgumentType]


def flat_weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def storages(*networks: nn.Module) -> int:
    """Bytes of all that the networks hold, shared ones once."""
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
