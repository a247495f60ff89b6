r"""Stage 0: a student equivalent to its teacher, in a form that works with few steps.

Predictions of eps say nothing about x where there is no signal, and guidance takes two evaluations per step. So before
any halving, a student with output v learns the teacher's own predictions at all times,

    loss = sqrt(w(t) mean |xh(z_t, t) - xh_teacher(z_t, t')|^2),    SNR(t') = SNR(t)

where t' is the teacher's time with the same signal-to-noise ratio, at which a variance-preserving latent belongs to
both schedules. The student's schedule is one of two:

zero terminal SNR    the teacher's, rescaled to end in pure noise, where sampling starts (Lin et al. 2023, arXiv
                     2305.08891). Beyond the teacher's last noise level t' = 1.
the teacher's own    t' = t. Sampling starts from pure noise although z_1 has some signal. The teacher itself is sampled
                     so, and its student makes the same images in many steps.

Without guidance the first is nearer to the data, and is the default for teachers that predict eps. With guidance it is
farther: the difference of two predictions of x is that of eps over rho, so guidance is strongest where there is least
signal, and the first calls the teacher beyond its last trained level (docs/results/text-models.md has figures).

The loss is a norm, not its square. Both are 0 for the same student, but the gradient of a square is as long as the
error, and a guided teacher starts g - 1 times the difference of its two predictions away from the student: the largest
scales would be learned at the cost of the others. The gradient of the norm by the prediction is

    sqrt(w(t) / D) e / |e|,    e = xh - xh_teacher of D numbers

with the same length at every scale, whatever the error.

If the teacher is guided (see `guidance`), the student learns the mixture of its two predictions. With one guidance
scale g it learns that mixture alone; with g as part of the condition, drawn for every example, it gets an input for the
scale,

    xh_student(z, t, c, g)

which is stage one of Meng et al. 2023 (arXiv 2210.03142). Stage two, its halving, works like any other student's.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_norm
from progdist.diffusion.parameterization import PARAMETERIZATIONS, Eps
from progdist.diffusion.schedule import Discrete, Schedule, VarianceExploding


def ends_above_zero_snr(schedule: Schedule) -> bool:
    """Whether a table of noise levels ends with some signal left."""
    return isinstance(schedule, Discrete) and schedule.alphas_cumprod[-1] > 0


def student_form(teacher: Denoiser, *, guided: bool, zero_terminal_snr: bool | None = None) -> Denoiser:
    """The teacher's own network in the form of its students: v in place of eps, on one of the two schedules.

    Where noise is added to data that keep their scale, v has the size of the noise, and its error says little about x:
    such students predict x.

    `zero_terminal_snr` selects the schedule that ends in pure noise; None selects it if the teacher predicts eps, is
    not guided, and can be called between its timesteps, where that schedule's times lie.
    """
    predicts_eps, schedule = isinstance(teacher.parameterization, Eps), teacher.schedule
    between = not teacher.whole_timesteps
    ends_in_noise = (predicts_eps and not guided and between) if zero_terminal_snr is None else zero_terminal_snr
    if ends_in_noise and isinstance(schedule, Discrete) and ends_above_zero_snr(schedule):
        schedule = schedule.rescaled()
    of_eps = PARAMETERIZATIONS["x" if isinstance(schedule, VarianceExploding) else "v"]
    output = of_eps if predicts_eps else teacher.parameterization
    return teacher.with_parts(schedule=schedule, prediction_type=output)


def needs_conversion(teacher: Denoiser, form: Denoiser) -> bool:
    """Whether a teacher has another form than its students."""
    return (teacher.schedule, teacher.parameterization) != (form.schedule, form.parameterization)


def form_in_words(student: Denoiser) -> str:
    """Describe what a student of stage 0 predicts, and where its schedule ends."""
    snr = float(student.schedule.log_snr(torch.ones((), dtype=torch.float64)).exp())
    end = f"at a signal-to-noise ratio of {snr:.2g}" if snr else "in pure noise"
    return f"a student with output {student.parameterization.name}, on a schedule that ends {end}"


def equal_snr(schedule: Schedule, other: Schedule, t: Tensor) -> Tensor:
    """The times t' at which `other` has the SNR of `schedule` at t; float64, with t's shape."""
    if not isinstance(other, Discrete):
        return t  # only tables are rescaled: any other schedule is unchanged
    return other.time(torch.atan2(schedule.sigma(t), schedule.alpha(t)))


def conversion_loss(
    student: DenoiserProtocol,
    teacher: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    weighting: str | Weighting,
    entries: int | None = None,
    **condition: Tensor,
) -> Tensor:
    """The weighted norm of the student's error against the teacher's prediction at the same SNR.

    Args:
        student: the denoiser to train.
        teacher: the frozen teacher.
        x: data (B, ...).
        eps: standard normal noise (B, ...).
        u: uniform in [0, 1), float64 (B,); t = 1 - u.
        weighting: a name in WEIGHTINGS, or your own function.
        entries: T for networks that know only the times 1 / T, ..., 1; None for networks that know any time.
        condition: passed to both.

    Returns:
        (B,), one loss per example.
    """
    t = 1 - u if entries is None else ((1 - u) * entries).ceil() / entries
    z = diffuse(student.schedule, x, eps, t)
    with torch.no_grad():
        target = teacher(z, equal_snr(student.schedule, teacher.schedule, t), **condition)
    return weighted_norm(weighting, student.schedule, student(z, t, **condition), target, t)


BANDS = (-float("inf"), -6.0, -2.0, 2.0, 6.0, float("inf"))  # edges of the log-SNR bands in the report of a match
BATCH = 64  # examples compared at a time in a report


@torch.no_grad()
def prediction_errors(
    student: DenoiserProtocol, teacher: DenoiserProtocol, x: Tensor, eps: Tensor, u: Tensor, **condition: Tensor
) -> Tensor:
    """The mean square difference of the two predictions of x for each example: float64 (B,) on the CPU."""
    t, errors = 1 - u, []
    for start in range(0, len(x), BATCH):
        part = slice(start, start + BATCH)
        rows = {name: value[part] for name, value in condition.items()}
        z = diffuse(student.schedule, x[part], eps[part], t[part])
        target = teacher(z, equal_snr(student.schedule, teacher.schedule, t[part]), **rows)
        errors.append((student(z, t[part], **rows) - target).square().flatten(1).mean(1).double().cpu())
    return torch.cat(errors)


def rms_by_interval(errors: Tensor, values: Tensor, edges: Sequence[float]) -> dict[str, float]:
    """The root of the mean error in each interval of a value, without empty intervals.

    Errors and values are float64 (B,). A value on one of the rising edges belongs below it, and values beyond the ends
    belong to the end intervals.
    """
    place = torch.bucketize(values.cpu(), torch.tensor(edges[1:-1], dtype=torch.float64))
    return {
        f"{low:.3g} to {high:.3g}": float(errors[place == number].mean().sqrt())
        for number, (low, high) in enumerate(pairwise(edges))
        if (place == number).any()
    }
