"""Stage 0: equal signal-to-noise ratios, guidance, clipping, and which teachers need it."""

from collections.abc import Callable
from typing import Any

import torch

from progdist import Cosine, Discrete
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.loss import WEIGHTINGS
from progdist.distillation.conversion import (
    conversion_loss,
    converted_form,
    equal_snr,
    error_by_band,
    needs_conversion,
)
from progdist.distillation.guidance import Clipped, Guided
from progdist.models.io.diffusers_pipeline import read_teacher
from support.stock import SaveStock


def test_equal_snr_is_equal() -> None:
    ours, theirs = Discrete.linear().rescaled(), Discrete.linear()
    t = torch.linspace(0.01, 0.9, 50, dtype=torch.float64)
    torch.testing.assert_close(theirs.log_snr(equal_snr(ours, theirs, t)), ours.log_snr(t), rtol=1e-9, atol=1e-9)
    assert float(equal_snr(ours, theirs, torch.ones(1).double())) == 1


def test_exact_denoisers_of_both_schedules_match() -> None:
    """At equal SNR the posterior mean is the same function: no loss, in any band, wherever the teacher reaches."""
    teacher = Gaussian(Discrete.linear(), torch.tensor(0.3), 0.5)
    student = Gaussian(Discrete.linear().rescaled(), torch.tensor(0.3), 0.5)
    x, eps, u = 0.3 + 0.5 * torch.randn(64, 3), torch.randn(64, 3), torch.linspace(0.05, 0.95, 64).double()
    loss = conversion_loss(student, teacher, x, eps, u, weighting=WEIGHTINGS["constant"])
    assert float(loss.max()) < 1e-6  # float32
    bands = error_by_band(student, teacher, x, eps, u)
    assert max(bands.values()) < 1e-4
    wrong = Gaussian(Discrete.linear().rescaled(), torch.tensor(0.4), 0.5)
    assert max(error_by_band(wrong, teacher, x, eps, u).values()) > 0.05


def test_guidance_and_clipping(tiny_model: Callable[..., Any]) -> None:
    denoiser = tiny_model(classes=4)
    z, t = torch.randn(3, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    labels, none = torch.tensor([0, 1, 2]), torch.full((3,), 3)
    with_class, free = (denoiser(z, t, class_labels=chosen) for chosen in (labels, none))
    guided = Guided(denoiser, {"class_labels": torch.tensor([3])}, 3.0)
    torch.testing.assert_close(guided(z, t, class_labels=labels), 3 * with_class - 2 * free, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Guided(denoiser, guided.unconditional, 1.0)(z, t, class_labels=labels), with_class)
    clipped = Clipped(guided)(z, t, class_labels=labels)
    torch.testing.assert_close(clipped, guided(z, t, class_labels=labels).clamp(-1, 1))
    assert clipped.abs().max() <= 1


def test_what_needs_stage_0(stock: SaveStock, tiny_model: Callable[..., Any]) -> None:
    teacher = read_teacher(str(stock())).model.denoiser
    assert needs_conversion(teacher)
    form = converted_form(teacher)
    assert not needs_conversion(form)
    assert float(form.schedule.alpha(torch.ones(()).double())) == 0
    assert form.timesteps == 1000
    assert not needs_conversion(tiny_model(Cosine()))
