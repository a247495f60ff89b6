r"""The loss of a global batch and its gradient: over parts of a batch, in a precision, averaged over processes.

    g = mean over the global batch of dloss/dtheta

Each process computes its share of the batch and torch's DistributedDataParallel averages the gradients. A loss may
consist of several named parts, which are summed. Some may train auxiliary networks, and the loss itself ensures that
each part reaches only its own weights (`untrained` excludes a network's). Gradients of auxiliary networks are averaged
after the backward pass, since DistributedDataParallel does not support second derivatives.
"""

import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

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
from progdist.training.state import MAIN, State

Loss = Callable[[nn.Module, Batch], Tensor | Mapping[str, Tensor]]
"""(network, batch) -> one loss per example, (B,), or several by name, which are summed."""


@dataclass(frozen=True)
class Gradient:
    """The loss of an update, and the norms of its gradients; all on the device, each ()."""

    loss: Tensor  # the mean over the global batch, of all parts together
    parts: Mapping[str, Tensor]  # of the loss, by name; empty if it has only one
    norms: Mapping[str, Tensor]  # of each network's gradient

    @property
    def finite(self) -> Tensor:
        """Whether all of them are finite."""
        return torch.stack([self.loss, *(norm.to(self.loss) for norm in self.norms.values())]).isfinite().all()


def total(losses: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The sum of a loss's parts, (B,)."""
    return losses if isinstance(losses, Tensor) else torch.stack(list(losses.values())).sum(0)


class Gradients:
    """Computes the gradient of each update; `seed` seeds what the network draws itself, e.g. dropout."""

    def __init__(self, state: State, loss: Loss, processes: Processes, seed: int, *, dropout: bool) -> None:
        self.state, self.loss, self.processes, self.seed = state, loss, processes, seed
        config = state.config
        kept = dropout or processes.num_processes > 1 or config.compile or config.cuda_graphs
        self.seeded = SeededWhereDrawn(True if kept else None)
        self._network: nn.Module | None = None

    def __call__(self, batch: Batch) -> Gradient:
        """The loss of the global batch; its gradient is left in the parameters."""
        placed = on_device(batch, self.processes.device)
        seed = lambda: position_seed(self.seed, self.state.update, self.processes.process_index)  # noqa: E731
        networks = [learner.network for learner in self.state.learners.values()]
        buffers = [] if self.seeded.draws else [each for network in networks for each in _buffers(network)]
        calls = itertools.count()

        def gradient() -> Gradient:
            if next(calls):  # repeated with a seed
                _put_back(buffers)
            return self._gradient(placed)

        return self.seeded(gradient, seed, self.processes.device)

    def release(self) -> None:
        """Release captured graphs."""
        if isinstance(self._network, CudaGraphs):
            self._network.release()

    def _gradient(self, batch: Batch) -> Gradient:
        count, learners = self.state.config.gradient_accumulation_steps, self.state.learners
        network, sums = self._prepared(batch), dict[str, Tensor]()
        for learner in learners.values():
            learner.optimizer.zero_grad()
        parts = zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True)
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == count else getattr(network, "no_sync", nullcontext)():
                losses = self._loss_of(network, dict(zip(batch, part, strict=True)))
                value = total(losses).float().mean() / count
                if not value.requires_grad:
                    raise UserError("the loss depends on no parameter in training: unfreeze one that it uses")
                value.backward()
            named = {MAIN: losses} if isinstance(losses, Tensor) else losses
            means = {name: each.detach().float().mean() / count for name, each in named.items()}
            sums = {name: sums.get(name, 0) + mean for name, mean in means.items()}
        for name, learner in learners.items():
            if name != MAIN:
                self._average(learner.parameters)
        norms = {name: _norm(learner.parameters) for name, learner in learners.items()}
        values = self.processes.reduce(torch.stack(list(sums.values())), "mean")
        return Gradient(values.sum(), dict(zip(sums, values, strict=True)) if len(sums) > 1 else {}, norms)

    def _average(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over the processes, in place."""
        if self.processes.num_processes > 1:
            for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
                gradient.copy_(self.processes.reduce(gradient, "mean"))

    def _loss_of(self, network: nn.Module, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        with autocast(self.processes.device, self.state.config.precision):
            return self.loss(network, batch)

    def _prepared(self, batch: Batch) -> nn.Module:
        """The network to call: averaging its gradients over the processes, compiled or captured."""
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
        """Whether the loss depends on every parameter in training, judged by its graph on two rows of a batch."""
        loss = total(self._loss_of(self.state.network, {name: tensor[:2] for name, tensor in batch.items()}))
        reached, nodes = set[int](), [loss.grad_fn] if loss.grad_fn else []
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            reached.add(id(getattr(node, "variable", None)))
            following = {after for after, _ in node.next_functions if after} - seen
            seen |= following
            nodes.extend(following)
        return all(id(parameter) in reached for parameter in self.state.parameters)


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm () of the gradient of some parameters."""
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _buffers(network: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """The buffers of a network, each with its module, its name and a copy of its values."""
    held = [(module, name, each) for module in network.modules() for name, each in module._buffers.items()]
    return [(module, name, each, each.clone()) for module, name, each in held if each is not None]


@torch.no_grad()
def _put_back(buffers: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    """Restore buffers that the network has changed."""
    for module, name, buffer, values in buffers:
        if module._buffers[name] is not buffer or not torch.equal(buffer, values):
            module._buffers[name] = buffer.copy_(values)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device; its float64 times go where `time_device` says."""
    return {
        name: tensor.to(time_device(device) if tensor.dtype == torch.float64 else device, non_blocking=True)
        for name, tensor in batch.items()
    }
