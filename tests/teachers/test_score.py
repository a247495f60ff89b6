"""Score-based networks of exploding variance, as their stock pipelines call them."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import KarrasVeScheduler, ScoreSdeVeScheduler  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

import progdist
from progdist import UserError, VarianceExploding, sample
from progdist.teachers.open import open_teacher
from support.stock import stock_network
from support.toys import times

SCHEDULERS = {
    "ScoreSdeVeScheduler": (ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=10.0), VarianceExploding(0.02, 20, math.inf)),
    "KarrasVeScheduler": (KarrasVeScheduler(sigma_min=0.02, sigma_max=20.0), VarianceExploding(0.02, 20, math.inf)),
}


def folder_of(path: Path, scheduler: Any, embedding: str = "fourier") -> Path:  # noqa: ANN401
    torch.manual_seed(0)
    network = UNet2DModel(**{**stock_network().config, "time_embedding_type": embedding})
    DDPMPipeline(network.eval(), scheduler).save_pretrained(path)
    return path


def euler_step(network: UNet2DModel, x: Tensor, sigma: float, lower: float) -> Tensor:
    """Of KarrasVePipeline, without its churn and its correction; in the stock scheduler's own code."""
    scheduler: Any = KarrasVeScheduler()
    output = (sigma / 2) * network((x + 1) / 2, torch.tensor(sigma / 2)).sample
    return scheduler.step(output, sigma, lower, x).prev_sample


@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_a_teacher_is_sampled_as_its_stock_pipeline_steps(tmp_path: Path, name: str) -> None:
    scheduler, schedule = SCHEDULERS[name]
    folder = folder_of(tmp_path / "teacher", scheduler)
    opened = open_teacher(str(folder))
    denoiser = opened.model.denoiser
    assert denoiser.schedule == schedule
    assert "noise from 0.02 to 20 on unscaled data, output eps" in opened.summary
    noise, network = torch.randn(3, 1, 8, 8), UNet2DModel.from_pretrained(folder, subfolder="unet")
    x, levels = 20 * noise, [float(schedule.sigma(times(t))) for t in (1, 0.75, 0.5, 0.25)]
    for sigma, lower in zip(levels, (*levels[1:], 0.0), strict=True):
        x = euler_step(network, x, sigma, lower)
    torch.testing.assert_close(sample(denoiser, noise, 4), x, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_score_is_that_of_images_from_0_to_1(tmp_path: Path) -> None:
    """By the stock SDE's own step: without its noise it moves by the variance lost times the score."""
    scheduler: Any = SCHEDULERS["ScoreSdeVeScheduler"][0]
    folder = folder_of(tmp_path / "teacher", scheduler)
    scheduler.set_timesteps(5)
    scheduler.set_sigmas(5)
    network, image = UNet2DModel.from_pretrained(folder, subfolder="unet"), torch.randn(2, 1, 8, 8)
    level, lower = (float(scheduler.discrete_sigmas[place]) for place in (3, 2))
    score = network(image, torch.tensor(level)).sample
    moved = scheduler.step_pred(score, torch.tensor(0.75), image).prev_sample_mean
    denoiser, t = progdist.load(folder), times(0.75)[0]
    assert float(denoiser.schedule.sigma(t)) == pytest.approx(2 * level, rel=1e-6)
    z = 2 * image - 1
    eps = (z - denoiser(z, t)) / (2 * level)
    torch.testing.assert_close(moved, image - (level**2 - lower**2) / level * eps, rtol=0, atol=1e-4)


def test_a_student_predicts_x_and_is_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "teacher", SCHEDULERS["ScoreSdeVeScheduler"][0])
    student = progdist.distill(progdist.load(folder), torch.randn(8, 1, 8, 8).clamp(-1, 1), [4, 2], updates=1, batch=4)
    assert student.parameterization.name == "x"
    progdist.save(student, tmp_path / "student")
    assert not (tmp_path / "student" / "scheduler").exists()
    assert "progdist.load" in (tmp_path / "student" / "README.md").read_text()
    noise = torch.randn(2, 1, 8, 8)
    made = sample(progdist.load(tmp_path / "student"), noise, 2)
    torch.testing.assert_close(made, sample(student, noise, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "embedding", "message"),
    [
        (DDPMScheduler(), "fourier", "fourier, for noise levels, but DDPMScheduler expects the other"),
        (ScoreSdeVeScheduler(), "positional", "not fourier, and ScoreSdeVeScheduler expects the other"),
        (
            ScoreSdeVeScheduler(sigma_min=0.5, sigma_max=0.4),
            "fourier",
            "damaged .*expected positive numbers sigma_min < sigma_max",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, scheduler: Any, embedding: str, message: str) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=message):
        open_teacher(str(folder_of(tmp_path / "teacher", scheduler, embedding)))
