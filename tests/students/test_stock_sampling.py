"""A model folder is a diffusers folder: stock samplers make our images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, sample
from support.stock import load_ddim, load_unet, stock_samples

Build = Callable[..., Denoiser]


MODELS = [
    ("v", Cosine(), 1024),
    ("x", Cosine(), 1024),
    ("eps", Cosine(), 1024),
    ("v", Cosine(math.inf, -math.inf), 1024),
    ("v", Discrete.linear(), 1000),
    ("eps", Discrete.linear(), 1000),
]


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize(("parameterization", "schedule", "timesteps"), MODELS, ids=lambda value: str(value)[:12])
def test_stock_ddim_makes_our_images(
    tiny_model: Build, tmp_path: Path, parameterization: str, schedule: progdist.Schedule, timesteps: int, steps: int
) -> None:
    denoiser = tiny_model(schedule, parameterization, num_train_timesteps=timesteps)
    progdist.save(denoiser, tmp_path / "model", steps=[steps])
    noise = torch.randn(3, 1, 8, 8)
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    theirs = stock_samples(pipeline.unet, pipeline.scheduler, noise, steps)
    ours = sample(progdist.load(tmp_path / "model"), noise, steps)
    scale = float(ours.abs().max())  # eps models divide by alpha = 4.5e-5 at t = 1
    torch.testing.assert_close(theirs / scale, ours / scale, rtol=0, atol=1e-4)
    if parameterization != "eps":
        assert scale < 100


def test_the_pipeline_call_itself(tiny_model: Build, tmp_path: Path) -> None:
    """DDIMPipeline draws its own noise; from the same generator ours is the same picture, after its clamp to [0, 1]."""
    progdist.save(tiny_model(), tmp_path / "model")
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    theirs: Any = pipeline(
        batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np"
    )
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = (sample(progdist.load(tmp_path / "model"), noise, 4) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(theirs.images), ours, rtol=0, atol=1e-4)


def test_stock_conditional(tiny_model: Build, tmp_path: Path) -> None:
    progdist.save(tiny_model(classes=3), tmp_path / "model")
    unet = load_unet(tmp_path / "model")
    scheduler = load_ddim(tmp_path / "model")
    noise, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    ours = sample(progdist.load(tmp_path / "model"), noise, 4, class_labels=labels)
    torch.testing.assert_close(stock_samples(unet, scheduler, noise, 4, class_labels=labels), ours, rtol=0, atol=1e-4)
    assert not ours.allclose(sample(progdist.load(tmp_path / "model"), noise, 4, class_labels=labels.flip(0)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_stock_flow_matching_makes_our_images(tiny_model: Build, tmp_path: Path, shift: float, steps: int) -> None:
    """By the number of steps alone: the folder's scheduler is that of its own count."""
    progdist.save(
        tiny_model(RectifiedFlow(shift), "velocity", num_train_timesteps=1000), tmp_path / "model", steps=[steps]
    )
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    unet, noise = load_unet(tmp_path / "model"), torch.randn(3, 1, 8, 8)
    theirs = stock_samples(unet, scheduler, noise, steps)
    torch.testing.assert_close(theirs, sample(progdist.load(tmp_path / "model"), noise, steps), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_of_any_count_is_given_our_grid(tiny_model: Build, tmp_path: Path, shift: float) -> None:
    progdist.save(tiny_model(RectifiedFlow(shift), "velocity", num_train_timesteps=1000), tmp_path / "model")
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    unet, noise = load_unet(tmp_path / "model"), torch.randn(3, 1, 8, 8)
    images = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            images = scheduler.step(unet(images, t).sample, t, images).prev_sample
    torch.testing.assert_close(images, sample(progdist.load(tmp_path / "model"), noise, 4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [16, 64, 512, 3])
def test_step_counts_at_which_stock_samplers_visit_other_times_are_told(
    tiny_model: Build, tmp_path: Path, steps: int
) -> None:
    denoiser = tiny_model(Discrete.linear().rescaled(), num_train_timesteps=1000)
    with pytest.warns(UserWarning, match=rf"in {steps} steps its stock scheduler visits other times .* its 1000"):
        progdist.save(denoiser, tmp_path / "model", steps=[steps])
    scheduler = load_ddim(tmp_path / "model")
    scheduler.set_timesteps(steps)
    ours = [round(1000 * (1 - place / steps) - 1, 6) for place in range(steps)]
    assert scheduler.timesteps.tolist() != ours
    assert "progdist.load" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("steps", [8, 125, 1000])
def test_step_counts_that_divide_are_not(tiny_model: Build, tmp_path: Path, steps: int) -> None:
    """Warnings are errors here."""
    denoiser = tiny_model(Discrete.linear().rescaled(), num_train_timesteps=1000)
    progdist.save(denoiser, tmp_path / "model", steps=[steps])
    scheduler = load_ddim(tmp_path / "model")
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == [1000 * (steps - place) // steps - 1 for place in range(steps)]


def test_a_flow_whose_equation_has_no_root_is_told(tiny_model: Build, tmp_path: Path) -> None:
    flow = tiny_model(RectifiedFlow(100.0), "velocity", num_train_timesteps=1000)
    with pytest.warns(UserWarning, match=r"in 32 steps .*set_timesteps\(sigmas="):
        progdist.save(flow, tmp_path / "model", steps=[32])
