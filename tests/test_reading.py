"""Trying what a teacher's output means, on networks that are exact by construction, and through the commands."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import Stock, call
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.parameterization import PARAMETERIZATIONS, V
from progdist.diffusion.schedule import Schedule
from progdist.distillation.teacher_check import _wrong_timestep, read, time_of

WIDTH = 0.003  # narrow data: at the lowest noise levels the noise can still be told from them


class Exact(nn.Module):
    """The output of a perfect network of some kind, trained with timestep = 1000 t - offset."""

    def __init__(self, schedule: Schedule, kind: str, offset: float) -> None:
        super().__init__()
        self.schedule, self.kind, self.offset = schedule, PARAMETERIZATIONS[kind], offset

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        t = ((timestep.double() + self.offset) / 1000).clamp(1e-3, 1)
        x = Gaussian(self.schedule, torch.tensor(0.3), WIDTH)(z, t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        eps = (z - alpha[:, None].float() * x) / sigma[:, None].float()
        return self.kind.output(x, eps, alpha, sigma)


def reading(
    schedule: Schedule, truth: str, said: str, true_offset: float = 1.0, said_offset: float = 1.0
) -> str | None:
    torch.manual_seed(0)
    network = Exact(schedule, truth, true_offset)
    denoiser = Denoiser(network, schedule, PARAMETERIZATIONS[said], timesteps=1000, offset=said_offset)
    x, eps = 0.3 + WIDTH * torch.randn(256, 8), torch.randn(256, 8)
    return read(denoiser, x, eps).problem


@pytest.mark.parametrize("level", [2.0, 0.0, -2.0])
@pytest.mark.parametrize("schedule", [Cosine(), Discrete.linear(), RectifiedFlow()])
def test_the_time_of_a_level(schedule: Schedule, level: float) -> None:
    assert float(schedule.log_snr(time_of(schedule, level))) == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize("truth", ["x", "eps", "v"])
@pytest.mark.parametrize("said", ["x", "eps", "v"])
def test_a_wrong_kind_of_output_is_found(truth: str, said: str) -> None:
    problem = reading(Discrete.linear(), truth, said)
    assert (problem is None) == (truth == said)
    if problem:
        assert f"predicts {said}, but read as {truth}" in problem


@pytest.mark.parametrize("said", [0.0, 1.0, 2.0])
def test_a_timestep_that_is_off_by_one_is_found(said: float) -> None:
    problem = reading(Discrete.linear(), "eps", "eps", 1.0, said)
    assert (problem is None) == (said == 1)
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
    assert reading(RectifiedFlow(), "velocity", "velocity", 0.0, 0.0) is None
    assert "read as velocity" in str(reading(RectifiedFlow(), "velocity", "x", 0.0, 0.0))


def test_denoisers_are_what_is_read(tiny_model: Callable[..., DenoiserProtocol]) -> None:
    denoiser = tiny_model()
    found = read(denoiser, torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8))  # pyright: ignore[reportArgumentType]
    assert set(found.errors) == {"x", "eps", "v"}
    assert set(found.shifts) == {-2, -1, 0, 1, 2}


def test_the_doctor_tells_what_there_is(stock: Stock) -> None:
    result = call("doctor", stock())
    assert result.exit_code == 0, result.output
    for words in ("UNet2DModel with DDPMScheduler", "output eps", "signal-to-noise ratio of 4.0e-05", "stage 0", "GiB"):
        assert words in " ".join(result.output.split())
    assert "200 -> 40 -> 8 -> 4" in " ".join(result.output.split())


@pytest.mark.slow
def test_the_doctor_and_distill_refuse_what_the_data_contradict(
    stock: Stock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = stock()
    problem = "the folder says its network predicts eps, but read as v it denoises the data better"
    monkeypatch.setattr("progdist.distillation.teacher_check._wrong_parameterization", lambda errors, own: problem)
    result = call("doctor", place, "--data", "digits")
    assert result.exit_code == 2
    assert f"! {problem}" in " ".join(result.output.split())
    result = call("distill", place, "--data", "digits", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert problem in result.stderr
    assert "teacher.trust=true" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_doctor_leaves_the_teacher_as_it_is(stock: Stock) -> None:
    """Its trial of the cost trains a copy."""
    from progdist.cli.doctor import TRIAL
    from progdist.models.io.diffusers_pipeline import read_teacher
    from progdist.runs.estimate import measure

    denoiser = read_teacher(str(stock())).model.denoiser
    before = [parameter.clone() for parameter in denoiser.parameters()]
    measure(denoiser, (1, 8, 8), 2, TRIAL)
    assert all(torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_an_offset_that_is_told_is_taken(stock: Stock) -> None:
    from progdist.models.io.diffusers_pipeline import read_teacher

    assert read_teacher(str(stock())).model.denoiser.offset == 1
    assert read_teacher(str(stock()), 0).model.denoiser.offset == 0


TRAINED = Path(__file__).parent / "data" / "stock_teacher"
"""A teacher that stock code trained for long enough to tell its timesteps apart (see tests/data/README.md)."""


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_trained_teacher_is_told_from_one_that_counts_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    monkeypatch.setattr("progdist.evaluation.teacher_check.CHECK_IMAGES", 1797)
    words = ("distill", TRAINED, "--data", "digits", "--out", tmp_path / "out", "--set", f"teacher.offset={offset}")
    brief = ("--start", 8, "--updates", 1, "--batch", 8, "--set", "evaluate.samples=8", "--set", "evaluate.resamples=2")
    for result in (call("doctor", TRAINED, "--data", "digits", "--offset", offset), call(*words, *brief)):
        assert result.exit_code == (0 if offset == 1 else 2), result.output
        if offset != 1:
            assert "teacher.offset=1" in " ".join(result.output.split())
    assert (tmp_path / "out").exists() == (offset == 1)


@pytest.mark.slow
def test_a_trained_teacher_with_a_wrong_prediction_type_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "wrong"
    shutil.copytree(TRAINED, place)
    config = place / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    for words in (("doctor", place), ("distill", place, "--out", tmp_path / "out")):
        result = call(*words, "--data", "digits")
        assert result.exit_code == 2
        assert "read as eps it denoises the data better" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (Discrete.linear().rescaled(), "v"),
        (Discrete.linear().rescaled(), "x"),
        (Cosine(), "x_eps"),
        (Cosine(), "velocity"),
        (RectifiedFlow(), "v"),
        (RectifiedFlow(3.0), "velocity"),
    ],
    ids=str,
)
def test_every_pair_of_schedule_and_output_can_be_tried(schedule: Schedule, kind: str) -> None:
    """Zero terminal SNR, two heads and unusual pairs: the reading that is right is found right."""
    network = Exact(RectifiedFlow() if isinstance(schedule, RectifiedFlow) else schedule, kind, 1.0)
    denoiser = Denoiser(network, schedule, PARAMETERIZATIONS[kind], timesteps=1000, offset=1.0)
    found = read(denoiser, 0.3 + WIDTH * torch.randn(256, 8), torch.randn(256, 8))
    assert found.problem is None
    assert kind in found.errors
    assert found.errors[kind] == min(found.errors.values())


class Halved(V):
    """An output of one's own."""


class Own(Cosine):
    """A schedule of one's own."""


def test_an_output_and_a_schedule_of_ones_own_can_be_tried() -> None:
    schedule = Own()
    denoiser = Denoiser(Exact(schedule, "v", 1.0), schedule, Halved(), timesteps=1000)
    assert read(denoiser, 0.3 + WIDTH * torch.randn(64, 8), torch.randn(64, 8)).problem is None
