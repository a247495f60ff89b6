"""Finding out what a teacher's output means, on networks that are exact by construction."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from progdist import Cosine, Denoiser, Discrete, Karras, RectifiedFlow
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.parameterization import PARAMETERIZATIONS, V
from progdist.diffusion.schedule import Schedule
from progdist.teachers.check import _wrong_timestep, check_teacher, time_of
from support.foreign import WIDTH as OF_FOREIGN
from support.foreign import Raw
from support.toys import label

WIDTH = 0.003  # narrow data: at the lowest noise levels the noise can still be told apart


class Exact(nn.Module):
    """The output of a perfect network of some kind, trained with timestep = 1000 t - offset."""

    def __init__(self, schedule: Schedule, parameterization: str, offset: float) -> None:
        super().__init__()
        self.schedule, self.parameterization, self.offset = schedule, PARAMETERIZATIONS[parameterization], offset

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        t = ((timestep.double() + self.offset) / 1000).clamp(1e-3, 1)
        x = Gaussian(self.schedule, torch.tensor(0.3), WIDTH)(z, t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        eps = (z - alpha[:, None].float() * x) / sigma[:, None].float()
        return self.parameterization.output(x, eps, alpha, sigma)


def problem_found(
    schedule: Schedule, actual: str, declared: str, actual_offset: float = 1.0, declared_offset: float = 1.0
) -> str | None:
    torch.manual_seed(0)
    network = Exact(schedule, actual, actual_offset)
    denoiser = Denoiser(
        network, schedule, PARAMETERIZATIONS[declared], num_train_timesteps=1000, offset=declared_offset
    )
    x, eps = 0.3 + WIDTH * torch.randn(256, 8), torch.randn(256, 8)
    return check_teacher(denoiser, x, eps).problem


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
@pytest.mark.parametrize("declared", ["edm", "v", "x", "eps"])
def test_the_output_of_an_edm(sigma_data: float, declared: str) -> None:
    """Its network sees data over their deviation, and predicts of them."""
    denoiser = Denoiser(Raw(sigma_data), Karras(sigma_data=sigma_data), declared)
    found = check_teacher(denoiser, 0.3 + OF_FOREIGN * torch.randn(256, 1, 4, 4), torch.randn(256, 1, 4, 4))
    assert min(found.errors, key=lambda name: found.errors[name]) == "edm"
    assert found.shifts == {}
    if declared == "edm":
        assert found.problem is None
    else:
        assert found.problem
        assert "read as edm" in found.problem


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["everywhere", "at low timesteps", "in one example"])
def test_an_output_that_is_not_finite_is_a_problem(number: float, where: str) -> None:
    class Broken(Exact):
        def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
            output = super().forward(z, timestep)
            if where == "at low timesteps":
                return torch.where(timestep[:, None] < 100, number, output)
            output[: 1 if where == "in one example" else None] = number
            return output

    schedule = Discrete.linear()
    denoiser = Denoiser(Broken(schedule, "v", 1.0), schedule, PARAMETERIZATIONS["v"], num_train_timesteps=1000)
    problem = check_teacher(denoiser, 0.3 + WIDTH * torch.randn(64, 8), torch.randn(64, 8)).problem
    assert problem is not None
    assert "not finite" in problem


@pytest.mark.parametrize("level", [2.0, 0.0, -2.0])
@pytest.mark.parametrize("schedule", [Cosine(), Discrete.linear(), RectifiedFlow()])
def test_the_time_of_a_level(schedule: Schedule, level: float) -> None:
    assert float(schedule.log_snr(time_of(schedule, level))) == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize("actual", ["x", "eps", "v"])
@pytest.mark.parametrize("declared", ["x", "eps", "v"])
def test_a_wrong_kind_of_output_is_found(actual: str, declared: str) -> None:
    problem = problem_found(Discrete.linear(), actual, declared)
    assert (problem is None) == (actual == declared)
    if problem:
        assert f"prediction type is {declared}, but read as {actual}" in problem


@pytest.mark.parametrize("declared", [0.0, 1.0, 2.0])
def test_a_timestep_that_is_off_by_one_is_found(declared: float) -> None:
    problem = problem_found(Discrete.linear(), "eps", "eps", 1.0, declared)
    assert (problem is None) == (declared == 1)
    if problem:
        assert "teacher.offset=1" in problem


def test_a_network_that_cannot_tell_its_timesteps_apart_is_not_refused() -> None:
    """Errors that fall steadily with the timestep say nothing of the convention; a minimum next to it does."""
    base = 2.6 + 0.01 * torch.randn(500)
    steady = {shift: (1 - 0.001 * shift) * base for shift in (-2, -1, 0, 1, 2)}
    assert _wrong_timestep(steady, 1.0) is None
    assert "teacher.offset=0" in str(_wrong_timestep(steady | {2: 1.001 * base}, 1.0))
    assert _wrong_timestep(steady | {1: base + 0.01 * torch.randn(500), 2: 1.001 * base}, 1.0) is None  # by chance


def test_a_flow_is_read_too() -> None:
    assert problem_found(RectifiedFlow(), "velocity", "velocity", 0.0, 0.0) is None
    assert "read as velocity" in str(problem_found(RectifiedFlow(), "velocity", "x", 0.0, 0.0))


def test_denoisers_are_what_is_read(tiny_model: Callable[..., DenoiserProtocol]) -> None:
    denoiser = tiny_model()
    found = check_teacher(denoiser, torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8))  # pyright: ignore[reportArgumentType]
    assert set(found.errors) == {"x", "eps", "v"}
    assert set(found.shifts) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [
        (Discrete.linear().rescaled(), "v"),
        (Discrete.linear().rescaled(), "x"),
        (Cosine(), "x_eps"),
        (Cosine(), "velocity"),
        (RectifiedFlow(), "v"),
        (RectifiedFlow(3.0), "velocity"),
    ],
    ids=label,
)
def test_every_pair_of_schedule_and_output_can_be_tried(schedule: Schedule, parameterization: str) -> None:
    """Zero terminal SNR, two heads and unusual pairs: the reading that is right is found right."""
    network = Exact(RectifiedFlow() if isinstance(schedule, RectifiedFlow) else schedule, parameterization, 1.0)
    denoiser = Denoiser(network, schedule, PARAMETERIZATIONS[parameterization], num_train_timesteps=1000, offset=1.0)
    found = check_teacher(denoiser, 0.3 + WIDTH * torch.randn(256, 8), torch.randn(256, 8))
    assert found.problem is None
    assert parameterization in found.errors
    assert found.errors[parameterization] == min(found.errors.values())


class Halved(V):
    """An output of one's own."""


class Own(Cosine):
    """A schedule of one's own."""


def test_an_output_and_a_schedule_of_ones_own_can_be_tried() -> None:
    schedule = Own()
    denoiser = Denoiser(Exact(schedule, "v", 1.0), schedule, Halved(), num_train_timesteps=1000)
    assert check_teacher(denoiser, 0.3 + WIDTH * torch.randn(64, 8), torch.randn(64, 8)).problem is None
