"""The training state: network, EMA and optimizer moments, as a checkpoint holds them."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from progdist.training.checkpoint import Checkpoint
from progdist.training.config import TrainConfig
from progdist.training.distributed import distribute, gather


class State:
    """Network, EMA and optimizer moments."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self.network, self.config = network, config
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        averaging = get_ema_multi_avg_fn(config.ema)
        self.average = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True) if config.ema else None
        self.update = self.skipped = self.skipped_in_a_row = 0
        self.seconds = 0.0

    def skip(self) -> None:
        """Skip an update whose gradient is not finite: only its number is counted."""
        self.optimizer.zero_grad()
        self.update, self.skipped, self.skipped_in_a_row = self.update + 1, self.skipped + 1, self.skipped_in_a_row + 1

    def step(self) -> None:
        """One optimiser step with the gradient in place."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.update)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.update, self.skipped_in_a_row = self.update + 1, 0

    def result(self) -> nn.Module:
        """The average where there is one, else the network."""
        return self.network if self.average is None else self.average.module

    def checkpoint(self) -> Checkpoint:
        """All of it, whole; of a network that is spread all processes must ask."""
        tensors = {f"network.{name}": tensor for name, tensor in gather(self.network.state_dict()).items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in gather(moments).items()}
        return Checkpoint(self.update, tensors, {"seconds": self.seconds, "skipped": self.skipped})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Raises:
            LookupError, RuntimeError, ValueError: it is of another network or version.
        """
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        for name, tensor in checkpoint.tensors.items():
            kind, _, rest = name.partition(".")
            groups[kind][rest] = tensor
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, rest = name.partition(".")
            learning = self.optimizer.param_groups[0]["params"][int(index)]
            moments.setdefault(int(index), {})[rest] = distribute(tensor, learning)
        own = self.network.state_dict()
        self.network.load_state_dict(
            {name: distribute(tensor, own[name]) for name, tensor in groups["network"].items()}
        )
        if self.average is not None:
            self.average.load_state_dict(groups["average"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.update, self.seconds = checkpoint.update, checkpoint.numbers["seconds"]
        self.skipped = checkpoint.numbers["skipped"]
