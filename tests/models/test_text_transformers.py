"""Pipelines of text-conditional transformers: students, and the stock pipelines that sample them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from progdist._utils.files import read_tensors
from progdist.diffusion.sampler import ddim_update, sample, time_grid
from progdist.evaluation.generate import sampling_noise
from progdist.methods.guidance import Guided
from progdist.models.networks import packed, unpacked
from progdist.models.prompts import Prompts
from progdist.students.folder import save
from progdist.teachers.flow import flow_scheduler
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import call
from support.text import PROMPTS, stock_pipeline
from support.text_transformers import SIZE, TRANSFORMER_WRITERS, transformer_student, write_flux, write_sd3

KINDS = pytest.mark.parametrize("kind", TRANSFORMER_WRITERS)


CALL: dict[str, dict[str, Any]] = {
    "PixArtSigmaPipeline": {"use_resolution_binning": False, "guidance_scale": 1.0},
    "StableDiffusion3Pipeline": {"guidance_scale": 1.0},
    "FluxPipeline": {"guidance_scale": 2.0, "height": SIZE[0], "width": SIZE[1]},
}
"""What a stock pipeline is told beside prompts and steps."""

SCALES = {"FluxPipeline": 2.0}
"""The guidance scale that our sampler is told where the network takes one."""


@KINDS
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_stock_pipeline_samples_what_we_sample(
    kind: str, steps: int, transformer_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    save(transformer_student(transformer_pipelines[kind], steps), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", kind)
    calls: list[int] = []
    pipeline.transformer.register_forward_hook(lambda module, given, output: calls.append(len(output[0])))
    noise = sampling_noise(model, len(PROMPTS), 0)
    given = {**CALL[kind], "latents": packed(noise) if kind == "FluxPipeline" else noise}
    theirs = pipeline(PROMPTS, num_inference_steps=steps, output_type="latent", **given).images
    assert calls == [len(PROMPTS)] * steps
    condition: dict[str, Any] = {**model.conditions(SCALES.get(kind), PROMPTS)({"labels": torch.arange(4)})}
    ours = sample(model.denoiser, noise, steps, **condition)
    ours_as_theirs = packed(ours) if kind == "FluxPipeline" else ours
    torch.testing.assert_close(ours_as_theirs, theirs, rtol=0, atol=1e-4)
    assert torch.equal(unpacked(packed(ours), 2), ours)
    told = sample(model.denoiser, noise, steps, **{name: rows.roll(1, 0) for name, rows in condition.items()})
    assert float((ours - told).abs().max()) > 0.01  # the captions matter


@KINDS
def test_the_command_makes_the_stock_pipelines_images(
    kind: str, transformer_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    save(transformer_student(transformer_pipelines[kind], 4), tmp_path / "student")
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    words += ["--guidance", str(SCALES[kind])] if kind in SCALES else []
    made = tmp_path / "made.safetensors"
    result = call("sample", tmp_path / "student", *words, "-n", 4, "--out", made)
    assert result.exit_code == 0, result.output
    noise = sampling_noise(load(tmp_path / "student"), 4, 0)
    pipeline = stock_pipeline(tmp_path / "student", kind)
    given = {**CALL[kind], "latents": packed(noise) if kind == "FluxPipeline" else noise}
    theirs = pipeline(PROMPTS, num_inference_steps=4, output_type="np", **given).images
    ours = read_tensors(made)["images"].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours.clip(-1, 1) / 2 + 0.5, theirs, rtol=0, atol=1e-4)


def test_the_guided_teacher_of_pixart_is_the_stock_pipeline(transformer_pipelines: dict[str, Path]) -> None:
    scheduler = DDIMScheduler(beta_schedule="linear", beta_end=0.02, timestep_spacing="trailing", clip_sample=False)
    check_guided_step(transformer_pipelines, "PixArtSigmaPipeline", scheduler, {"use_resolution_binning": False})


def test_the_guided_teacher_of_sd3_is_the_stock_pipeline(transformer_pipelines: dict[str, Path]) -> None:
    check_guided_step(transformer_pipelines, "StableDiffusion3Pipeline", flow_scheduler(3.0, 1000, 2), {})


def check_guided_step(transformer_pipelines: dict[str, Path], kind: str, scheduler: Any, more: dict[str, Any]) -> None:  # noqa: ANN401
    """One of two steps from the same latents, away from a negative prompt."""
    teacher, pipeline = (
        open_teacher(str(transformer_pipelines[kind])).model,
        stock_pipeline(transformer_pipelines[kind], kind),
    )
    assert isinstance(teacher.conditioning, Prompts)
    pipeline.scheduler, z, seen = scheduler, torch.randn(4, 4, 4, 4), list[Tensor]()

    def keep(module: object, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(given[0] if given else named["hidden_states"])

    hook = pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    pipeline(
        PROMPTS,
        negative_prompt=["a smudge"] * 4,
        guidance_scale=4.0,
        num_inference_steps=2,
        latents=z,
        output_type="latent",
        **more,
    )
    hook.remove()
    condition = teacher.conditions(None, PROMPTS)({"labels": torch.arange(4)})
    guided = Guided(teacher.denoiser, teacher.conditioning.encoder().unconditional("a smudge"), 4.0)
    t, s = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        ours = ddim_update(guided.schedule, z, guided(z, t, **condition), t, s)
    torch.testing.assert_close(ours, seen[1][:4], rtol=1e-4, atol=1e-4)


def test_a_teacher_of_flux_is_sampled_as_stock_samples_it(transformer_pipelines: dict[str, Path]) -> None:
    """Its times shifted by the number of tokens, and its own guidance."""
    kind = "FluxPipeline"
    teacher, pipeline = (
        open_teacher(str(transformer_pipelines[kind]), None, SIZE).model,
        stock_pipeline(transformer_pipelines[kind], kind),
    )
    noise = sampling_noise(teacher, 4, 0)
    given = {**CALL[kind], "latents": packed(noise), "num_inference_steps": 5}
    theirs = pipeline(PROMPTS, output_type="latent", **given).images
    condition: dict[str, Any] = {**teacher.conditions(2.0, PROMPTS)({"labels": torch.arange(4)})}
    torch.testing.assert_close(packed(sample(teacher.denoiser, noise, 5, **condition)), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
def test_dynamic_shifting_is_that_of_the_pipeline(shift_type: str, tmp_path: Path) -> None:
    dynamic: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 2.0}
    dynamic |= {"base_image_seq_len": 2, "max_image_seq_len": 16, "time_shift_type": shift_type}
    teacher = open_teacher(str(write_sd3(tmp_path / "sd3", **dynamic))).model
    pipeline = stock_pipeline(tmp_path / "sd3", "StableDiffusion3Pipeline")
    pipeline(PROMPTS[:1], num_inference_steps=4, guidance_scale=1.0, sigmas=[1.0, 0.75, 0.5, 0.25])
    ours = teacher.denoiser.schedule.sigma(time_grid(4))
    torch.testing.assert_close(ours, pipeline.scheduler.sigmas.double(), rtol=0, atol=1e-6)


def test_a_flux_without_a_guidance_input(tmp_path: Path) -> None:
    """As FLUX.1-schnell is: nothing tells it a scale."""
    place = write_flux(tmp_path / "flux", guidance_embeds=False)
    save(transformer_student(place, 2), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", "FluxPipeline")
    noise = sampling_noise(model, 4, 0)
    given = {**CALL["FluxPipeline"], "latents": packed(noise), "num_inference_steps": 2}
    theirs = pipeline(PROMPTS, output_type="latent", **given).images
    condition: dict[str, Any] = {**model.conditions(None, PROMPTS)({"labels": torch.arange(4)})}
    torch.testing.assert_close(packed(sample(model.denoiser, noise, 2, **condition)), theirs, rtol=0, atol=1e-4)
