"""Text-to-image pipelines: a student that takes a guidance scale, and the stock pipeline that samples it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

import progdist
from progdist import UserError
from progdist._utils.files import read_tensors
from progdist.diffusion.sampler import ddim_update, sample
from progdist.evaluation.generate import sampling_noise
from progdist.methods.guidance import Fixed, Guided, Input
from progdist.models.conditioning import Conditions
from progdist.models.guidance_input import guidance_embedding
from progdist.models.model import Model
from progdist.models.networks import network_interface, takes_guidance, with_guidance_input
from progdist.models.prompts import PromptConditions, Prompts
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import call
from support.text import PROMPTS, WRITERS, stock_pipeline, text_student

KINDS = pytest.mark.parametrize("kind", WRITERS)


def latents(model: Model, noise: Tensor, steps: int, conditions: Conditions) -> Tensor:
    condition: dict[str, Any] = {**conditions({"labels": torch.arange(len(noise))})}
    return sample(model.denoiser, noise, steps, **condition)


@KINDS
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_stock_pipeline_samples_what_we_sample(
    kind: str, pipelines: dict[str, Path], tmp_path: Path, *, zero_terminal_snr: bool
) -> None:
    save(text_student(pipelines[kind], zero_terminal_snr=zero_terminal_snr), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", kind)
    calls: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    noise = sampling_noise(model, len(PROMPTS), 0)
    found, conditions = [], model.conditions(None, PROMPTS)
    assert isinstance(conditions, PromptConditions)
    for steps in (1, 2, 4, 8):
        for guidance in (1.0, 3.0, 7.5, 14.0):
            calls.clear()
            theirs = pipeline(
                PROMPTS,
                guidance_scale=guidance,
                num_inference_steps=steps,
                latents=noise,
                output_type="latent",
                negative_prompt=["blurred"] * len(PROMPTS),
            ).images
            assert calls == [len(PROMPTS)] * steps
            ours = latents(model, noise, steps, conditions.at(guidance))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            found.append(ours)
    assert min(float((a - b).abs().max()) for a, b in pairwise(found)) > 0.01  # each is another


@KINDS
def test_the_command_makes_the_stock_pipelines_images(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(text_student(pipelines[kind]), tmp_path / "student")
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    made = tmp_path / "made.safetensors"
    result = call("sample", tmp_path / "student", *words, "--guidance", 3, "-n", 4, "--out", made)
    assert result.exit_code == 0, result.output
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", kind)
    noise = sampling_noise(model, 4, 0)
    theirs = pipeline(PROMPTS, guidance_scale=3.0, num_inference_steps=4, latents=noise, output_type="np").images
    ours = read_tensors(made)["images"].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours.clip(-1, 1) / 2 + 0.5, theirs, rtol=0, atol=1e-4)


@KINDS
def test_a_loaded_model_takes_prompts(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(text_student(pipelines[kind]), tmp_path / "student")
    denoiser, pipeline = progdist.load(tmp_path / "student"), stock_pipeline(tmp_path / "student", kind)
    noise = torch.randn(4, 4, 4, 4)
    ours = progdist.sample(denoiser, noise, 4, prompt=PROMPTS[:2], guidance=3.0)
    prompts = [*PROMPTS[:2], *PROMPTS[:2]]
    theirs = pipeline(prompts, guidance_scale=3.0, num_inference_steps=4, latents=noise, output_type="pt").images
    torch.testing.assert_close(ours.clamp(-1, 1) / 2 + 0.5, theirs, rtol=0, atol=1e-4)
    progdist.save(denoiser, tmp_path / "again", steps=[4])
    again = progdist.load(tmp_path / "again")
    torch.testing.assert_close(progdist.sample(again, noise, 4, prompt=PROMPTS[:2], guidance=3.0), ours)
    with pytest.raises(UserError, match="this model requires prompt"):
        progdist.sample(denoiser, noise, 4, guidance=3.0)


@KINDS
def test_a_guidance_input_that_was_not_taught_changes_nothing(kind: str, pipelines: dict[str, Path]) -> None:
    teacher = open_teacher(str(pipelines[kind])).model
    network = with_guidance_input(teacher.denoiser.network, Input(1.0, 14.0))
    assert network.config["time_cond_proj_dim"] == 256  # pyright: ignore
    assert takes_guidance(network)
    assert not takes_guidance(teacher.denoiser.network)
    student = teacher.denoiser.with_parts(network=network, **network_interface(network))
    condition = teacher.conditions(None, PROMPTS)({"labels": torch.arange(4)})
    z, t = torch.randn(4, 4, 4, 4), torch.tensor(0.6, dtype=torch.float64)
    guidance = torch.tensor([1.0, 3.0, 7.5, 14.0], dtype=torch.float64)
    torch.testing.assert_close(student(z, t, guidance=guidance, **condition), teacher.denoiser(z, t, **condition))


@KINDS
def test_the_guided_teacher_is_the_stock_pipeline(kind: str, pipelines: dict[str, Path]) -> None:
    """One step of DDIM from the same latents: the stock pipeline mixes predictions of eps, and we denoised data."""
    teacher, guidance = open_teacher(str(pipelines[kind])).model, 7.5
    assert isinstance(teacher.conditioning, Prompts)
    pipeline = stock_pipeline(pipelines[kind], kind)
    none = teacher.conditioning.encoder().unconditional("a smudge")
    condition = teacher.conditions(None, PROMPTS)({"labels": torch.arange(4)})
    seen: dict[str, Tensor] = {}
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
    )
    z = torch.randn(4, 4, 4, 4)

    def keep(pipe: object, step: int, timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen[str(step)] = given["latents"]
        return given

    pipeline(
        PROMPTS,
        negative_prompt=["a smudge"] * 4,
        guidance_scale=guidance,
        num_inference_steps=2,
        latents=z,
        output_type="latent",
        callback_on_step_end=keep,
    )
    scales = torch.full((4,), guidance, dtype=torch.float64)
    for guided, more in (
        (Guided(teacher.denoiser, none, guidance), {}),
        (Guided(teacher.denoiser, none), {"guidance": scales}),
    ):
        t, s = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
        x = guided(z, t, **condition, **more)
        torch.testing.assert_close(ddim_update(guided.schedule, z, x, t, s), seen["0"], rtol=1e-4, atol=1e-4)


def test_each_example_has_its_own_guidance(pipelines: dict[str, Path]) -> None:
    teacher = open_teacher(str(pipelines["StableDiffusionPipeline"])).model
    assert isinstance(teacher.conditioning, Prompts)
    condition = teacher.conditions(None, PROMPTS)({"labels": torch.arange(4)})
    none = teacher.conditioning.encoder().unconditional(None)
    z, t = torch.randn(4, 4, 4, 4), torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        together = Guided(teacher.denoiser, none)(z, t, **condition, guidance=scales)
        for row, scale in enumerate(scales.tolist()):
            alone = Guided(teacher.denoiser, none, scale)(z, t, **condition)
            torch.testing.assert_close(together[row], alone[row])


def test_the_embedding_is_that_of_the_stock_pipeline() -> None:
    guidance = [1.0, 1.3, 7.5, 14.0]
    theirs = [
        StableDiffusionPipeline.get_guidance_scale_embedding(
            None,  # pyright: ignore[reportArgumentType]
            torch.tensor(scale - 1).repeat(1),
            embedding_dim=256,
        )
        for scale in guidance
    ]
    assert torch.equal(guidance_embedding(torch.tensor(guidance, dtype=torch.float64), 256), torch.cat(theirs))


@pytest.mark.parametrize("guidance", [Fixed(3.0), None])
def test_a_student_of_fixed_guidance_is_sampled_at_scale_one(
    guidance: Fixed | None, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    kind = "StableDiffusionPipeline"
    save(text_student(pipelines[kind], guidance), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", kind)
    assert model.guidance == guidance
    noise = sampling_noise(model, 4, 0)
    theirs = pipeline(PROMPTS, guidance_scale=1.0, num_inference_steps=4, latents=noise, output_type="latent").images
    ours = latents(model, noise, 4, model.conditions(None, PROMPTS))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="guidance 2 has no effect"):
        model.conditions(2.0, PROMPTS)
