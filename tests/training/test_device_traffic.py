"""What an update and a sample cost beside the network: copies to the device, waits for it, numbers drawn."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from progdist import WEIGHTINGS, Cosine, Denoiser, Discrete, RectifiedFlow, denoising_loss, distillation_loss
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.sampler import sample
from progdist.diffusion.schedule import Schedule
from progdist.methods.conversion import conversion_loss
from progdist.training.batches import Batches
from progdist.training.config import TrainConfig
from progdist.training.state import MAIN, State

META = torch.device("meta")
"""A device without memory: whatever waits for a number of it raises."""


class Traffic(TorchDispatchMode):
    """Counts copies from the CPU to the meta device, and reads of a number from any device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        sources = [one for one in args if isinstance(one, Tensor) and one.device.type == "cpu"]
        if name in ("_to_copy", "copy_") and isinstance(out, Tensor) and out.device == META and sources:
            self.counts["copies"] += 1
        if name == "_local_scalar_dense":
            self.counts["reads"] += 1
        return out


def network() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
            return self.layer(z) * timestep[:, None, None, None]

    return Net().to(META)


SCHEDULES = [Cosine(), RectifiedFlow(), Discrete.scaled_linear(num_train_timesteps=16).rescaled()]


def denoiser(schedule: Schedule) -> Denoiser:
    kind = "velocity" if isinstance(schedule, RectifiedFlow) else "v"
    return Denoiser(network(), schedule, PARAMETERIZATIONS[kind], num_train_timesteps=16)


def distilling(schedule: Schedule) -> Callable[..., Tensor]:
    teacher = denoiser(schedule).requires_grad_(False)
    return partial(distillation_loss, teacher=teacher, steps=4, weighting=WEIGHTINGS["truncated_snr"])


def converting(schedule: Schedule) -> Callable[..., Tensor]:
    eps = Discrete.scaled_linear(num_train_timesteps=16)
    teacher = Denoiser(network(), eps, PARAMETERIZATIONS["eps"], num_train_timesteps=16).requires_grad_(False)
    return partial(conversion_loss, teacher=teacher, weighting=WEIGHTINGS["truncated_snr"])


def teaching(schedule: Schedule) -> Callable[..., Tensor]:
    return partial(denoising_loss, weighting=WEIGHTINGS["truncated_snr"])


class Descent(torch.optim.Optimizer):
    """theta <- theta - rate g."""

    def __init__(self, parameters: Any, rate: float, **options: object) -> None:  # noqa: ANN401
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ANN401
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)


@pytest.mark.parametrize("loss_of", [teaching, distilling, converting])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_an_update_copies_nothing_to_the_device_and_reads_nothing(
    schedule: Schedule, loss_of: Callable[[Schedule], Callable[..., Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradient, step and average, of a batch that is on the device; tables were sent before.

    torch's fused AdamW has no meta device: plain descent stands in for it.
    """
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    student = denoiser(schedule)
    loss = loss_of(schedule)
    state = State(student.network, TrainConfig(updates=4, batch=2, learning_rate=1e-3, ema=0.9))
    x, eps = torch.zeros(2, 2, 1, 8, 8, device=META)
    u = torch.zeros(2, dtype=torch.float64, device=META)

    def update() -> None:
        value = loss(student, x=x, eps=eps, u=u).mean()
        value.backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        state.step(value.isfinite() & norm.isfinite(), {MAIN: norm})

    update()
    with Traffic() as traffic:
        update()
    assert traffic.counts == {}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_a_sample_sends_its_times_and_nothing_else(schedule: Schedule) -> None:
    model = denoiser(schedule)
    noise = torch.zeros(2, 1, 8, 8, device=META)
    sample(model, noise, 8)
    with Traffic() as traffic:
        sample(model, noise, 8)
    assert traffic.counts == {"copies": 1}


def test_the_counter_counts() -> None:
    with Traffic() as traffic:
        torch.ones(2).to(META).copy_(torch.ones(2))
        float(torch.ones(()))
    assert traffic.counts == {"copies": 2, "reads": 1}


class Zeros:
    """Sixteen examples of zeros, which count how often one is asked for."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked += 1
        return torch.zeros(self.shape), 0


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_process_loads_and_draws_for_its_own_rows(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of n processes together is that of one, and each draws an n-th of it."""
    drawn: list[int] = []
    draw = Tensor.normal_

    def counted(noise: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        drawn.append(noise.numel())
        return draw(noise, **options)

    monkeypatch.setattr(Tensor, "normal_", counted)
    share, together = 8 // processes, []
    for process in range(processes):
        drawn.clear()
        images = Zeros()
        rows = slice(process * share, (process + 1) * share)
        together.append(next(Batches(images, 8, seed=1, stage=2)(5, 6, rows)))
        assert (sum(drawn), images.asked) == (share * 16, share)
    whole = next(Batches(Zeros(), 8, seed=1, stage=2)(5, 6, slice(0, 8)))
    for name in ("eps", "u"):
        assert torch.equal(torch.cat([one[name] for one in together]), whole[name])


def test_a_table_is_made_once_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Discrete.linear(num_train_timesteps=8)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    first = schedule.alpha(t)
    monkeypatch.setattr(torch, "atan2", None)
    assert torch.equal(schedule.alpha(t), first)
