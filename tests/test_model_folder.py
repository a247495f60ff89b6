"""A model folder is a diffusers folder: stock samplers make our images; damage is refused in one line."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError, sample
from progdist.models.io.folder import load, save
from progdist.models.model import Model

Build = Callable[..., Denoiser]

KINDS = [
    ("v", Cosine(), 1024),
    ("x", Cosine(), 1024),
    ("eps", Cosine(), 1024),
    ("v", Cosine(math.inf, -math.inf), 1024),
    ("v", Discrete.linear(), 1000),
    ("eps", Discrete.linear(), 1000),
]


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize(("kind", "schedule", "timesteps"), KINDS, ids=lambda value: str(value)[:12])
def test_stock_ddim_makes_our_images(
    tiny_model: Build, tmp_path: Path, kind: str, schedule: progdist.Schedule, timesteps: int, steps: int
) -> None:
    denoiser = tiny_model(schedule, kind, timesteps=timesteps)
    progdist.save(denoiser, tmp_path / "model", steps=[steps])
    noise = torch.randn(3, 1, 8, 8)
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    theirs = stock(pipeline.unet, pipeline.scheduler, noise, steps)
    ours = sample(progdist.load(tmp_path / "model"), noise, steps)
    scale = float(ours.abs().max())  # eps models divide by alpha = 4.5e-5 at t = 1
    torch.testing.assert_close(theirs / scale, ours / scale, rtol=0, atol=1e-4)
    if kind != "eps":
        assert scale < 100


def stock_unet(folder: Path) -> Any:  # noqa: ANN401  (diffusers' own annotations fit few of its uses)
    return UNet2DModel.from_pretrained(folder, subfolder="unet")


def stock_ddim(folder: Path) -> Any:  # noqa: ANN401
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


@torch.no_grad()
def stock(unet: Any, scheduler: Any, noise: Tensor, steps: int, **condition: Tensor) -> Tensor:  # noqa: ANN401
    """A stock sampling loop, from given noise."""
    scheduler.set_timesteps(steps)
    images = noise
    for t in scheduler.timesteps:
        images = scheduler.step(unet(images, t, **condition).sample, t, images).prev_sample
    return images


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
    unet = stock_unet(tmp_path / "model")
    scheduler = stock_ddim(tmp_path / "model")
    noise, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    ours = sample(progdist.load(tmp_path / "model"), noise, 4, class_labels=labels)
    torch.testing.assert_close(stock(unet, scheduler, noise, 4, class_labels=labels), ours, rtol=0, atol=1e-4)
    assert not ours.allclose(sample(progdist.load(tmp_path / "model"), noise, 4, class_labels=labels.flip(0)))


def test_stock_flow_matching(tiny_model: Build, tmp_path: Path) -> None:
    progdist.save(tiny_model(RectifiedFlow(), "velocity", timesteps=1000), tmp_path / "model")
    unet = stock_unet(tmp_path / "model")
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    noise = torch.randn(3, 1, 8, 8)
    images = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            images = scheduler.step(unet(images, t).sample, t, images).prev_sample
    torch.testing.assert_close(images, sample(progdist.load(tmp_path / "model"), noise, 4), rtol=0, atol=1e-4)


def test_two_heads_are_kept_without_a_scheduler(tiny_model: Build, tmp_path: Path) -> None:
    denoiser = tiny_model(kind="x_eps")
    progdist.save(denoiser, tmp_path / "model")
    assert not (tmp_path / "model" / "scheduler").exists()
    noise = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(sample(progdist.load(tmp_path / "model"), noise, 2), sample(denoiser, noise, 2))


def test_what_is_told_comes_back(tiny_model: Build, tmp_path: Path) -> None:
    model = Model(tiny_model(Discrete((0.9, 0.4, 0.1)), classes=2), (4, 2), (16, 8), ("cat", "dog"), "npz:x", {"n": 1})
    save(model, tmp_path / "model")
    back = load(tmp_path / "model")
    assert back.denoiser.schedule == model.denoiser.schedule
    assert (back.steps, back.lineage, back.classes, back.data, back.training) == (
        (4, 2), (16, 8), ("cat", "dog"), "npz:x", {"n": 1},
    )  # fmt: skip
    told = json.loads((tmp_path / "model" / "progdist.json").read_text())
    assert set(told["versions"]) == {"progdist", "torch", "diffusers"}


def test_an_existing_folder_is_never_written_over(tiny_model: Build, tmp_path: Path) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    with pytest.raises(UserError, match="exists"):
        progdist.save(tiny_model(), tmp_path / "model")
    with pytest.raises(UserError, match="UNet2DModel"):
        progdist.save(Denoiser(torch.nn.Identity(), Cosine(), progdist.PARAMETERIZATIONS["v"]), tmp_path / "other")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _told(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no progdist.json": lambda folder: (folder / "progdist.json").unlink(),
    "progdist.json cut": lambda folder: _cut(folder / "progdist.json"),
    "no JSON object": lambda folder: _write(folder / "progdist.json", "[]"),
    "unknown schedule": lambda folder: _told(folder / "progdist.json", schedule={"kind": "cosmic"}),
    "schedule of other numbers": lambda folder: _told(folder / "progdist.json", schedule={"kind": "cosine", "a": 1}),
    "no parameterization": lambda folder: _told(folder / "progdist.json", parameterization=None),
    "steps that are words": lambda folder: _told(folder / "progdist.json", steps=["many"]),
    "weights missing": lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
    "weights cut": lambda folder: _cut(folder / "unet" / "diffusion_pytorch_model.safetensors"),
    "another network": lambda folder: _told(folder / "unet" / "config.json", block_out_channels=[16, 16]),
    "config cut": lambda folder: _cut(folder / "unet" / "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused(tiny_model: Build, tmp_path: Path, damage: str) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    DAMAGE[damage](tmp_path / "model")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "model") in str(caught.value)


def test_classes_are_kept(tiny_model: Build, tmp_path: Path) -> None:
    denoiser = tiny_model(classes=3)
    progdist.save(denoiser, tmp_path / "numbers")
    assert load(tmp_path / "numbers").classes == ("0", "1", "2")
    progdist.save(denoiser, tmp_path / "names", classes=("ant", "bee", "cat"))
    assert load(tmp_path / "names").classes == ("ant", "bee", "cat")
    with pytest.raises(UserError, match="one for each"):
        progdist.save(denoiser, tmp_path / "other", classes=("ant",))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_shifted_flow_visits_its_own_grid_in_stock(tiny_model: Build, tmp_path: Path, shift: float) -> None:
    progdist.save(tiny_model(RectifiedFlow(shift), "velocity", timesteps=1000), tmp_path / "model")
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    unet, noise = stock_unet(tmp_path / "model"), torch.randn(3, 1, 8, 8)
    images = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            images = scheduler.step(unet(images, t).sample, t, images).prev_sample
    torch.testing.assert_close(images, sample(progdist.load(tmp_path / "model"), noise, 4), rtol=0, atol=1e-4)


class OwnSchedule(Cosine):
    """A user's own."""


def test_a_schedule_of_ones_own_has_no_folder(tiny_model: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not OwnSchedule with V"):
        progdist.save(tiny_model(OwnSchedule()), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_that_were_not_written_are_refused(tiny_model: Build, tmp_path: Path) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    (weights.parent / "more.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match=r"more.safetensors is not one of the files that were written"):
        load(tmp_path / "model")
    _told(tmp_path / "model" / "progdist.json", sha256={})
    assert load(tmp_path / "model").steps == ()  # as the message says, and as early folders are


@pytest.mark.parametrize("steps", [[10**13], [0], [True, "4"], [4.5]])
def test_step_counts_that_no_model_has_are_refused(tiny_model: Build, tmp_path: Path, steps: list[Any]) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    _told(tmp_path / "model" / "progdist.json", steps=steps)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "model")
