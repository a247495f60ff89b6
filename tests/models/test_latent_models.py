"""Latent models are distilled, and stock parts make their images."""

from pathlib import Path
from typing import Any

import pytest
import torch

import progdist
from progdist.evaluation.generate import SamplingOptions, generate_images, sampling_noise
from progdist.teachers.own import load
from support.commands import UNTRAINED, call
from support.latent import SHORT, distill_latent, save_dit, stock_latent_images

pytestmark = pytest.mark.slow


def test_a_latent_model_is_distilled_and_stock_parts_make_its_images(latent_student: Path) -> None:
    model = load(latent_student)
    assert (model.image, model.shape[1:]) == ((1, 8, 8), (4, 4))
    images, labels, steps = generate_images(model, SamplingOptions(None, 5, None, 0), print)
    theirs = stock_latent_images(latent_student, sampling_noise(model, 5, 0), steps, labels.tolist())
    torch.testing.assert_close(images, theirs, rtol=0, atol=1e-4)
    assert images.shape == (5, 1, 8, 8)
    assert len(model.classes) == (11 if (latent_student / "transformer").is_dir() else 0)


def test_guidance_of_a_transformer_uses_the_class_for_none(tmp_path: Path) -> None:
    distill_latent(save_dit(tmp_path / "DiT"), tmp_path / "out", "--guidance", 2)


def test_flipping_is_of_images(latent: Path, tmp_path: Path) -> None:
    result = call(
        "distill", latent, "--data", "digits", "--out", tmp_path / "out", *UNTRAINED, "--set", "data.flip=true"
    )
    assert result.exit_code == 2
    assert "data.flip" in result.stderr


def test_loading_keeps_the_autoencoder(latent_student: Path, tmp_path: Path) -> None:
    """`progdist.sample` gives images of a latent model, and saving it again keeps its autoencoder."""
    denoiser, model = progdist.load(latent_student), load(latent_student)
    noise, count = torch.randn(3, *model.shape), len(model.classes)
    condition: dict[str, Any] = {"class_labels": torch.arange(3)} if count else {}
    images = progdist.sample(denoiser, noise, 4, **condition)
    torch.testing.assert_close(images, stock_latent_images(latent_student, noise, 4, list(range(3))), rtol=0, atol=1e-4)
    progdist.save(denoiser, tmp_path / "again", steps=[4])
    torch.testing.assert_close(progdist.sample(progdist.load(tmp_path / "again"), noise, 4, **condition), images)
    assert load(tmp_path / "again").autoencoder is not None
    with pytest.raises(progdist.UserError, match="clip applies only to images"):
        progdist.sample(denoiser, noise, 4, clip=True, **condition)


def test_latents_are_not_clipped(latent: Path, tmp_path: Path) -> None:
    arguments = ("--data", "digits", "--out", tmp_path / "out", *SHORT, *UNTRAINED)
    result = call("distill", latent, *arguments, "--set", "evaluate.clip=true")
    assert result.exit_code == 2, result.output
    assert "evaluate.clip applies only to images, but a latent model samples latents" in result.stderr


def test_images_of_latents_are_not_clipped(latent_student: Path, tmp_path: Path) -> None:
    result = call("sample", latent_student, "--clip", "--out", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "clip applies only to images" in result.stderr
