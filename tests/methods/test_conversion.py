"""Stage 0: equal signal-to-noise ratios, guidance, clipping, and which teachers need it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from progdist import Cosine, Discrete
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.loss import WEIGHTINGS
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.methods.conversion import (
    conversion_loss,
    equal_snr,
    needs_conversion,
    prediction_errors,
    rms_by_interval,
    student_form,
)
from progdist.methods.guidance import Clipped, Guided, Input
from progdist.teachers.open import open_teacher
from support.stock import SaveStock


def test_equal_snr_is_equal() -> None:
    ours, theirs = Discrete.linear().rescaled(), Discrete.linear()
    t = torch.linspace(0.01, 0.9, 50, dtype=torch.float64)
    torch.testing.assert_close(theirs.log_snr(equal_snr(ours, theirs, t)), ours.log_snr(t), rtol=1e-9, atol=1e-9)
    assert float(equal_snr(ours, theirs, torch.ones(1).double())) == 1


def test_exact_denoisers_of_both_schedules_match() -> None:
    """At equal SNR the posterior mean is the same function: no loss, at any time, wherever the teacher reaches."""
    teacher = Gaussian(Discrete.linear(), torch.tensor(0.3), 0.5)
    student = Gaussian(Discrete.linear().rescaled(), torch.tensor(0.3), 0.5)
    x, eps, u = 0.3 + 0.5 * torch.randn(64, 3), torch.randn(64, 3), torch.linspace(0.05, 0.95, 64).double()
    loss = conversion_loss(student, teacher, x, eps, u, weighting=WEIGHTINGS["constant"])
    assert float(loss.max()) < 1e-3  # float32
    assert float(prediction_errors(student, teacher, x, eps, u).mean().sqrt()) < 1e-4
    wrong = Gaussian(Discrete.linear().rescaled(), torch.tensor(0.4), 0.5)
    assert float(prediction_errors(wrong, teacher, x, eps, u).mean().sqrt()) > 0.03


def test_every_guidance_scale_has_the_same_share_in_the_gradient() -> None:
    """A student that is its teacher without guidance is wrong by (g - 1) d; its gradient is as long at every g > 1."""
    scales = torch.tensor([1.0, 1.01, 3.0, 7.5, 14.0]).double()

    def prediction(z: torch.Tensor, t: torch.Tensor, *, classes: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        return (z + classes[:, None]).float()

    class Teacher:
        schedule = Cosine()
        __call__ = staticmethod(prediction)

    class Student(Teacher):
        predicted: list[torch.Tensor]

        def __call__(self, z: torch.Tensor, t: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
            self.predicted = [prediction(z, t, **condition).requires_grad_()]
            return self.predicted[0]

    student, guided = Student(), Guided(Teacher(), {"classes": torch.zeros(1)})
    x, eps, u = torch.randn(5, 8), torch.randn(5, 8), torch.full((5,), 0.7).double()
    condition: dict[str, Any] = {"classes": torch.ones(5), "guidance": scales}
    weighting = WEIGHTINGS["truncated_snr"]
    loss = conversion_loss(student, guided, x, eps, u, weighting=weighting, **condition)
    loss.sum().backward()
    gradient = student.predicted[0].grad
    assert gradient is not None
    weight = float(weighting(Cosine().rho(1 - u[0]) ** 2)) ** 0.5
    torch.testing.assert_close(loss, weight * (scales - 1).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient[1:].norm(dim=1), torch.full((4,), weight / 8**0.5))
    assert float(gradient[0].abs().max()) == 0  # where there is nothing to learn


def test_errors_are_told_by_interval() -> None:
    assert Input(1.0, 16.0).edges() == pytest.approx([1, 2, 4, 8, 16])
    errors, values = torch.tensor([1.0, 4, 9, 16, 25]).double(), torch.tensor([-9.0, 2, 2.5, 8, 99]).double()
    found = rms_by_interval(errors, values, [1.0, 2, 4, 8, 16])
    assert found == pytest.approx({"1 to 2": 2.5**0.5, "2 to 4": 3, "4 to 8": 4, "8 to 16": 5})
    assert list(rms_by_interval(errors[:1], values[:1], [1.0, 2, 4])) == ["1 to 2"]


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
    teacher = open_teacher(str(stock())).model.denoiser
    form = student_form(teacher, guided=False)
    assert needs_conversion(teacher, form)
    assert not needs_conversion(form, student_form(form, guided=False))
    assert not needs_conversion(form, student_form(form, guided=False, zero_terminal_snr=True))
    assert float(form.schedule.alpha(torch.ones(()).double())) == 0
    assert form.num_train_timesteps == 1000
    own = tiny_model(Cosine())
    assert not needs_conversion(own, student_form(own, guided=False))


def test_a_student_may_keep_the_end_of_its_teachers_schedule(stock: SaveStock) -> None:
    """Its times are then its teacher's own, and once it predicts v nothing is left to convert."""
    teacher = open_teacher(str(stock())).model.denoiser
    form = student_form(teacher, guided=False, zero_terminal_snr=False)
    assert needs_conversion(teacher, form)  # it predicts eps
    guided = student_form(teacher, guided=True)
    assert (guided.schedule, guided.parameterization) == (form.schedule, form.parameterization)  # the default of both
    assert form.parameterization is PARAMETERIZATIONS["v"]
    assert form.schedule == teacher.schedule
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(equal_snr(form.schedule, teacher.schedule, t), t)
    assert not needs_conversion(form, student_form(form, guided=False))
    assert needs_conversion(form, student_form(form, guided=False, zero_terminal_snr=True))  # for another end
