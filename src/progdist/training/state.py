r"""The training state: networks, EMA and optimizer moments, as saved in a checkpoint.

A step is made only if the update is finite, which only the device knows: with f = 1 if it is and 0 if not,

    theta, moments <- AdamW(theta, g / max(1, |g| / max_grad_norm)) if f else unchanged
    ema            <- ema + f (1 - decay) (theta - ema),    with decay = 0 at the first step

Auxiliary networks, e.g. a discriminator, step at the same time: an update is finite for all of them, or for none.

torch's AdamW takes f on the device. That of bitsandbytes keeps the moments of every tensor of 4,096 or more numbers in
8 bits, one byte each and four for every 256 (Dettmers et al. 2022, arXiv 2110.02861). It is called only where f = 1, so
the host waits for f at each update; on a GPU that optimizer itself waits for each tensor.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from progdist._utils.extras import import_extra
from progdist.training.checkpoint import Checkpoint
from progdist.training.config import TrainConfig
from progdist.training.distributed import distribute, gather

Auxiliaries = Mapping[str, tuple[nn.Module, TrainConfig]]
"""Networks trained beside the main one, by name, and how."""

NO_AUXILIARIES: Auxiliaries = MappingProxyType({})
MAIN = "main"  # the name of the main network among all

WRONG = (LookupError, RuntimeError, ValueError, TypeError, OverflowError, AttributeError)  # from a foreign checkpoint


class Learner:
    """A network in training: its trainable parameters, their optimizer, and the average if there is one."""

    def __init__(self, network: nn.Module, config: TrainConfig, average: nn.Module | None = None) -> None:
        self.network, self.config = network, config
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(self.parameters, config)
        self.device = self.parameters[0].device
        self.ema_network = None
        if config.ema:
            self.ema_network = copy_for_average(network) if average is None else average.to(self.device)

    def step(self, update: int, steps: Tensor, finite: Tensor, norm: Tensor) -> None:
        """One optimizer step of an update, after this many `steps` (), as in `State.step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(update)
        limit = self.config.max_grad_norm
        scale = (norm.float() / limit).clamp(min=1) if limit else None
        if self.config.optimizer == "adamw8bit":
            self._step_of_8_bits(finite, scale)
        else:
            setattr(self.optimizer, "found_inf", self._replicated((~finite).float()))  # noqa: B010  (as GradScaler does)
            if scale is not None:
                setattr(self.optimizer, "grad_scale", self._replicated(scale))  # noqa: B010
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema_network is not None:
            self._update_average(steps, finite)

    def _step_of_8_bits(self, finite: Tensor, scale: Tensor | None) -> None:
        if finite:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            if scale is not None:
                torch._foreach_div_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
            self.optimizer.step()

    def _replicated(self, number: Tensor) -> Tensor:
        """The number as a DTensor if the parameters are sharded."""
        first = self.parameters[0]
        if not isinstance(first, DTensor):
            return number
        return distribute_tensor(number, first.device_mesh, [Replicate()])

    @torch.no_grad()
    def _update_average(self, steps: Tensor, finite: Tensor) -> None:
        assert self.ema_network is not None
        weight = torch.where(steps == 0, 1.0, 1 - self.config.ema) * finite
        pairs = zip(self.network.parameters(), self.ema_network.parameters(), strict=True)
        values, averages = zip(*((value, mean) for value, mean in pairs if value.requires_grad), strict=True)
        difference = torch._foreach_sub(values, averages)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(difference, weight)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(averages, difference)  # pyright: ignore[reportPrivateImportUsage]
        for buffer, value in zip(self.ema_network.buffers(), self.network.buffers(), strict=True):
            buffer.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Network, average and moments by name, whole; with a sharded network call it in all processes."""
        tensors = {f"network.{name}": tensor for name, tensor in gather(self.network.state_dict()).items()}
        if self.ema_network is not None:
            frozen, averages = self._frozen(), self.ema_network.state_dict().items()
            tensors |= {f"average.module.{name}": tensor for name, tensor in averages if name not in frozen}
        for index, parameter in enumerate(self.parameters):
            moments = self.optimizer.state.get(parameter, {})
            kept = {name: torch.as_tensor(moment) for name, moment in moments.items() if name not in TABLES}
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in gather(kept).items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state from `tensors`."""
        groups = {"network": dict[str, Tensor](), "average": dict[str, Tensor](), "optimizer": dict[str, Tensor]()}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, rest = name.partition(".")
            parameter = self.optimizer.param_groups[0]["params"][int(index)]
            moments.setdefault(int(index), {})[rest] = distribute(tensor, parameter)
        current = self.network.state_dict()
        weights = {name: distribute(tensor, current[name]) for name, tensor in groups["network"].items()}
        self.network.load_state_dict(weights)
        if self.ema_network is not None:
            averages = {name.removeprefix("module."): one for name, one in groups["average"].items()}
            shared = {name: groups["network"][name] for name in self._frozen()}
            self.ema_network.load_state_dict(shared | averages)
        self._restore_moments(moments)

    def _frozen(self) -> set[str]:
        """The names of frozen tensors, which the average shares and a checkpoint holds once."""
        return {name for name, each in self.network.named_parameters(remove_duplicate=False) if not each.requires_grad}

    def _restore_moments(self, moments: dict[int, dict[str, Tensor]]) -> None:
        """Restore the optimizer's moments of each parameter, by the parameter's index."""
        eight_bits = self.config.optimizer == "adamw8bit"
        if any(("state1" in names) != eight_bits for names in moments.values()):
            raise ValueError("it was trained with another optimizer")
        if not eight_bits:
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
            return
        maps = cast(Any, self.optimizer).name2qmap
        for index, tensors in moments.items():
            parameter = self.parameters[index]
            tables = {"qmap1": maps["dynamic"], "qmap2": maps["udynamic"]} if "absmax1" in tensors else {}
            placed = {name: tensor.to(parameter.device) for name, tensor in {**tensors, **tables}.items()}
            self.optimizer.state[parameter] = {**placed, "step": int(tensors["step"])}


class State:
    """All that a training changes: the network, auxiliary networks by name if there are any, and counts."""

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        average: nn.Module | None = None,
        auxiliaries: Auxiliaries = NO_AUXILIARIES,
    ) -> None:
        main = Learner(network, config, average)
        self.network, self.config, self.parameters = network, config, main.parameters
        self.learners = {MAIN: main} | {name: Learner(*each) for name, each in auxiliaries.items()}
        self.update, self.seconds = 0, 0.0
        self.whole = True  # false during a step
        counts = torch.zeros(4, dtype=torch.int64, device=main.device)
        self.steps, self.skipped, self.skipped_in_a_row, self.max_skipped_in_a_row = counts.unbind()

    def step(self, finite: Tensor, norms: Mapping[str, Tensor]) -> None:
        """One optimizer step of each network with the gradients in place, clipped by their own norm ().

        There is no step if `finite` () is false. The fused optimizer divides by the scale and reads the flag within
        its own pass over the weights.
        """
        self.whole = False
        for name, learner in self.learners.items():
            learner.step(self.update, self.steps, finite, norms[name])
        self.steps += finite
        self.skipped += ~finite
        self.skipped_in_a_row.add_(1).mul_(~finite)
        torch.maximum(self.max_skipped_in_a_row, self.skipped_in_a_row, out=self.max_skipped_in_a_row)
        self.update += 1
        self.whole = True

    def skips(self) -> tuple[int, int]:
        """The number of updates without a step: in all, and the most in a row."""
        skipped, in_a_row = torch.stack([self.skipped, self.max_skipped_in_a_row]).tolist()
        return skipped, in_a_row

    def result(self) -> nn.Module:
        """The average if there is one, else the network."""
        average = self.learners[MAIN].ema_network
        return self.network if average is None else average

    def checkpoint(self) -> Checkpoint:
        """The whole state; with a sharded network call it in all processes."""
        tensors = self.learners[MAIN].tensors()
        if self.config.ema:
            tensors["average.n_averaged"] = self.steps
        for name, learner in self.learners.items():
            if name != MAIN:
                tensors |= {f"{name}.{each}": tensor for each, tensor in learner.tensors().items()}
        return Checkpoint(self.update, tensors, {"seconds": self.seconds, "skipped": int(self.skipped)})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint; if it belongs to another network or version it raises one of WRONG."""
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in self.learners}
        for name, tensor in checkpoint.tensors.items():
            owner, _, rest = name.partition(".")
            if owner in self.learners:
                groups[owner][rest] = tensor
            else:
                groups[MAIN][name] = tensor
        if self.config.ema:
            self.steps.copy_(groups[MAIN].pop("average.n_averaged"))
        for name, learner in self.learners.items():
            learner.restore(groups[name])
        self.update, self.seconds = checkpoint.update, float(checkpoint.numbers["seconds"])
        self.skipped.fill_(int(checkpoint.numbers["skipped"]))


def copy_for_average(network: nn.Module) -> nn.Module:
    """A copy of a network to hold the average of its weights; frozen tensors have no average and are shared.

    A network that is frozen as a whole, as one prepared for sampling, is yet to be trained, and is copied as a whole.
    """
    frozen = {id(each): each for each in network.parameters() if not each.requires_grad}
    whole = len(frozen) == len(list(network.parameters()))
    return copy.deepcopy(network, {} if whole else frozen)


TABLES = ("qmap1", "qmap2")  # of an 8-bit optimizer, the numbers that its 256 codes stand for: constants


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    how = {"betas": (config.adam_beta1, config.adam_beta2), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw8bit":
        optimizer: Any = bitsandbytes().optim.AdamW8bit
        return optimizer(parameters, config.learning_rate, **how)
    return torch.optim.AdamW(parameters, config.learning_rate, fused=True, **how)


def bitsandbytes() -> Any:  # noqa: ANN401  (a module)
    """Import the library of the 8-bit optimizer. Raise a UserError where the extra `bnb` is missing."""
    return import_extra("bitsandbytes", "bnb", "optimizer adamw8bit")
