r"""The loss of a global batch and its gradient: over parts of a batch, in a precision, averaged over processes.

    g = mean over the global batch of dloss/dtheta

Each process computes its share of the batch and torch's DistributedDataParallel averages the gradients.
"""

import itertools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from progdist._utils.broadcasting import time_device
from progdist._utils.errors import UserError
from progdist._utils.random import SeededWhereDrawn, position_seed
from progdist.compute.cuda_graphs import CudaGraphs, accelerated
from progdist.compute.precision import autocast
from progdist.training.batches import Batch
from progdist.training.distributed import Processes
from progdist.training.state import State

Loss = Callable[[nn.Module, Batch], Tensor]  # (network, batch) -> one loss per example, (B,)


class Gradients:
    """Computes the gradient of each update; `seed` is of what the network draws itself, as dropout does."""

    def __init__(self, state: State, loss: Loss, processes: Processes, seed: int, *, dropout: bool) -> None:
        self.state, self.loss, self.processes, self.seed = state, loss, processes, seed
        config = state.config
        kept = dropout or processes.num_processes > 1 or config.compile or config.cuda_graphs
        self.seeded = SeededWhereDrawn(True if kept else None)
        self._network: nn.Module | None = None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The global batch's mean loss and its gradient's norm, on the device; the gradient is in the parameters."""
        placed = on_device(batch, self.processes.device)
        seed = lambda: position_seed(self.seed, self.state.update, self.processes.process_index)  # noqa: E731
        buffers = [] if self.seeded.draws else _buffers(self.state.network)
        calls = itertools.count()

        def gradient() -> tuple[Tensor, Tensor]:
            if next(calls):  # computed once more, seeded
                _put_back(buffers)
            return self._gradient(placed)

        return self.seeded(gradient, seed, self.processes.device)

    def release(self) -> None:
        """Give up what was captured."""
        if isinstance(self._network, CudaGraphs):
            self._network.release()

    def _gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        config, device = self.state.config, self.processes.device
        count = config.gradient_accumulation_steps
        network, total = self._prepared(batch), torch.zeros((), dtype=torch.float32, device=device)
        self.state.optimizer.zero_grad()
        parts = zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True)
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == count else getattr(network, "no_sync", nullcontext)():
                value = self._loss_of(network, dict(zip(batch, part, strict=True))).float().mean() / count
                if not value.requires_grad:
                    raise UserError("the loss depends on none of the parameters in training: unfreeze one that it uses")
                value.backward()
            total += value.detach()
        gradients = [parameter.grad for parameter in self.state.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return self.processes.reduce(total, "mean"), norm

    def _loss_of(self, network: nn.Module, batch: Batch) -> Tensor:
        with autocast(self.processes.device, self.state.config.precision):
            return self.loss(network, batch)

    def _prepared(self, batch: Batch) -> nn.Module:
        """The network as it is called: averaging its gradients over the processes, compiled or captured."""
        if self._network is None:
            network, config, device = self.state.network, self.state.config, self.processes.device
            spread = any(isinstance(parameter, DTensor) for parameter in self.state.parameters)
            if self.processes.num_processes > 1 and not spread:
                everything = self.processes.reduce(torch.tensor(float(self._uses_all(batch)), device=device), "mean")
                network = DistributedDataParallel(
                    network,
                    device_ids=None if device.type == "cpu" else [device],
                    find_unused_parameters=bool(everything < 1),
                )
            self._network = accelerated(network, config.compile, config.cuda_graphs)
        return self._network

    def _uses_all(self, batch: Batch) -> bool:
        """Whether the loss depends on every parameter in training, by its graph on two rows of a batch."""
        loss = self._loss_of(self.state.network, {name: tensor[:2] for name, tensor in batch.items()})
        reached, nodes = set[int](), [loss.grad_fn] if loss.grad_fn else []
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            reached.add(id(getattr(node, "variable", None)))
            following = {after for after, _ in node.next_functions if after} - seen
            seen |= following
            nodes.extend(following)
        return all(id(parameter) in reached for parameter in self.state.parameters)


def _buffers(network: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """The buffers of a network, each with its module, its name and a copy of its values."""
    held = [(module, name, each) for module in network.modules() for name, each in module._buffers.items()]
    return [(module, name, each, each.clone()) for module, name, each in held if each is not None]


@torch.no_grad()
def _put_back(buffers: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    """The buffers as they were, where the network has changed them."""
    for module, name, buffer, values in buffers:
        if module._buffers[name] is not buffer or not torch.equal(buffer, values):
            module._buffers[name] = buffer.copy_(values)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device; its times, in float64, where `time_device` says."""
    return {
        name: tensor.to(time_device(device) if tensor.dtype == torch.float64 else device, non_blocking=True)
        for name, tensor in batch.items()
    }
