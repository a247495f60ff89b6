"""Text-to-image students with a discriminator: guidance taken in, sampled by the stock pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from progdist import sample
from progdist.teachers.own import load
from support.commands import read_records
from support.text import PROMPTS, write_sd
from support.text_runs import distilled

ADVERSARIAL = ("--method", "adversarial", "--set", "distill.chain=[8, 4]")


@pytest.mark.slow
@pytest.mark.parametrize("discriminator", ["convolutions", "teacher", "trained_teacher"])
def test_the_stock_pipeline_makes_what_the_student_makes(discriminator: str, pairs: Path) -> None:
    """Every kind of discriminator is told the captions; the folder is as that of any other student."""
    options = ("--set", f"distill.options={{discriminator: {discriminator}, judged: trajectory}}")
    out = distilled(write_sd(pairs.parent / "teacher"), pairs, "--guidance", "3", *ADVERSARIAL, *options)
    losses = [record["losses"] for record in read_records(out, "metrics") if "losses" in record]
    assert losses
    assert all(each["discriminator"] > 0 for each in losses)
    model = load(out / "student-0004")
    assert model.training["options"]["discriminator"] == discriminator
    pipeline: Any = StableDiffusionPipeline.from_pretrained(out / "student-0004")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(len(PROMPTS), *model.shape, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=1.0, latents=noise.clone(), output_type="latent"
    ).images
    condition = model.conditions(None, PROMPTS)({"labels": torch.arange(len(PROMPTS))})
    with torch.no_grad():
        ours = sample(model.denoiser, noise, 4, **dict[str, Any](condition))
    torch.testing.assert_close(torch.as_tensor(theirs), ours, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("discriminator", ["convolutions", "teacher"])
def test_low_rank_students_have_one_too(discriminator: str, pairs: Path) -> None:
    """The teacher's frozen network, which the adapters share, judges them, and stays as it is."""
    options = ("--set", f"distill.options={{discriminator: {discriminator}}}")
    place = write_sd(pairs.parent / "teacher")
    out = distilled(place, pairs, "--guidance", "3", "--lora", 2, *ADVERSARIAL, *options)
    student = load(out / "student-0004")
    assert student.lora is not None
    assert student.lora.rank == 2
    assert any(rows.any() for name, rows in student.lora.weights.items() if "lora_B" in name)
    assert all(
        "losses" in each for each in read_records(out, "metrics") if each["model"] == "student-0004" and "loss" in each
    )
