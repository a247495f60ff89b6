"""Transitive, consistency and stochastic targets against exact flows and teacher steps."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from progdist import WEIGHTINGS, Cosine, Discrete, RectifiedFlow, distillation_target
from progdist._utils.broadcasting import per_example
from progdist.diffusion.analytic import Gaussian, Mixture
from progdist.diffusion.sampler import ddim_update, sample
from progdist.diffusion.schedule import Schedule
from progdist.methods import METHODS
from progdist.methods.chain import Stage
from progdist.methods.stochastic import stochastic_loss, stochastic_times
from progdist.methods.transitive import transitive_loss, transitive_target
from support.checks import mixture
from support.jumps import Jumps
from support.toys import label, times

SCHEDULES = [Cosine(), Cosine(math.inf, -math.inf), Discrete.linear(), RectifiedFlow()]
SNR = WEIGHTINGS["truncated_snr"]


@pytest.mark.parametrize("schedule", [Cosine(math.inf, -math.inf), RectifiedFlow()], ids=label)
@pytest.mark.parametrize("segments", [1, 2, 4])
def test_the_target_of_perfect_teachers_is_the_exact_flow(schedule: Schedule, segments: int) -> None:
    """A teacher's exact step, and a student's exact jump to the segment's end, make an exact jump."""
    exact, count = Gaussian(schedule, torch.tensor(0.3).double(), 0.5), 16
    t = torch.arange(1, count + 1, dtype=torch.float64) / count
    m, s = t - 1 / count, ((t * segments).ceil() - 1) / segments
    z = torch.randn(count, 2, dtype=torch.float64)
    student = Jumps(exact, segments)
    target = transitive_target(Jumps(exact, count), student, z, t, m, s)
    torch.testing.assert_close(target, student(z, t), rtol=0, atol=1e-12)
    torch.testing.assert_close(ddim_update(schedule, z, target, t, s), exact.flow(z, t, s), rtol=0, atol=1e-12)


class Rest:
    """A student that has learned what the teacher does from each of 12 times to the end of its segment, of 3."""

    def __init__(self, teacher: Mixture) -> None:
        self.teacher, self.schedule = teacher, teacher.schedule

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        j, targets = (t * 12).round(), torch.empty_like(z)
        left = (j - 1) % 4 + 1
        for steps in range(1, 5):
            rows = left == steps
            s = (j[rows] - steps) / 12
            targets[rows] = distillation_target(self.teacher, z[rows], t[rows], s, substeps=steps)
        return targets


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
def test_a_student_that_knows_the_rest_learns_all_steps_to_the_end(schedule: Schedule) -> None:
    """The closure is transitive: one teacher step and the rest are the target of all teacher steps at once."""
    teacher = mixture(schedule)
    rest = Rest(teacher)
    j = torch.arange(1, 13, dtype=torch.float64)
    t, m, s = j / 12, (j - 1) / 12, ((j / 4).ceil() - 1) / 3
    z = torch.randn(12, 2, dtype=torch.float64)
    torch.testing.assert_close(transitive_target(teacher, rest, z, t, m, s), rest(z, t), rtol=0, atol=1e-12)
    x, eps = torch.randn(2, 24, 2, dtype=torch.float64)
    u = (torch.arange(24, dtype=torch.float64) + 0.5) / 24
    losses = transitive_loss(rest, teacher, x, eps, u, self_teacher=rest, steps=3, substeps=4, weighting=SNR)
    assert float(losses.max()) < 1e-20
    wrong = transitive_loss(teacher, teacher, x, eps, u, self_teacher=rest, steps=3, substeps=4, weighting=SNR)
    assert float(wrong.max()) > 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
def test_one_segment_is_consistency_distillation(schedule: Schedule) -> None:
    """The target is the self-teacher's at the teacher's next point, and the data that the last step gives."""
    teacher, other = mixture(schedule), Mixture(schedule, -mixture(schedule).means, 0.3, torch.ones(3).double() / 3)
    t = torch.arange(1, 9, dtype=torch.float64) / 8
    z, m = torch.randn(8, 2, dtype=torch.float64), t - 1 / 8
    target = transitive_target(teacher, other, z, t, m, torch.zeros(8, dtype=torch.float64))
    reached = ddim_update(schedule, z, teacher(z, t), t, m)
    torch.testing.assert_close(target[1:], other(reached[1:], m[1:]), rtol=0, atol=1e-12)
    assert torch.equal(target[0], reached[0])


class Recording(Gaussian):
    """Keeps the times at which it is asked."""

    seen: dict[str, Tensor]

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.seen.setdefault("t", t)
        return super().__call__(z, t)


def recording() -> Recording:
    student = Recording(Cosine(), torch.tensor(0.3).double(), 0.5)
    object.__setattr__(student, "seen", {})
    return student


@pytest.mark.parametrize("name", ["tract", "stochastic"])
def test_the_losses_visit_their_times_evenly(name: str) -> None:
    """The teacher's 12 times where the student teaches itself; twice its own 4 where it is to be sampled with noise."""
    student, teacher = recording(), Gaussian(Cosine(), torch.tensor(0.3).double(), 0.5)
    taught = {"self_teacher": teacher} if name == "tract" else {}
    u, x = (torch.arange(240, dtype=torch.float64) + 0.5) / 240, torch.zeros(240, 1, dtype=torch.float64)
    METHODS[name].stage_loss(teacher, Stage(4, 3), SNR)(student, x=x, eps=x, u=u, **taught)
    values, counts = student.seen["t"].unique(return_counts=True)
    number = {"tract": 12, "stochastic": 8}[name]
    assert values.tolist() == [i / number for i in range(1, number + 1)]
    assert counts.tolist() == [240 // number] * number


@dataclass
class Steps(Jumps):
    """The perfect model of `segments` steps that begin anywhere: each ends 1/segments below, or at 0."""

    def end(self, t: Tensor) -> Tensor:
        return (t - 1 / self.segments).clamp(min=0)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("substeps", [2, 3, 4])
def test_a_stochastic_student_steps_by_its_length_or_by_what_is_left(steps: int, substeps: int) -> None:
    """From t = i/(2N) to max(t - 1/N, 0): where steps of a perfect teacher land, each as long as the teacher's are."""
    exact = Gaussian(Cosine(math.inf, -math.inf), torch.tensor(0.3).double(), 0.5)
    x, eps = torch.randn(2, 64, 2, dtype=torch.float64)
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    student, teacher = Steps(exact, steps), Steps(exact, steps * substeps)
    loss = stochastic_loss(student, teacher, x, eps, u, steps=steps, substeps=substeps, weighting=SNR)
    assert float(loss.max()) < 1e-20


def test_the_steps_of_a_stochastic_students_teacher_are_of_one_length() -> None:
    i = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert (stochastic_times(i, 2, 2) * 4).T.tolist() == [[1, 1, 0], [2, 1, 0], [3, 2, 1]]
    assert (stochastic_times(i, 1, 3) * 6).T.tolist() == [[3, 3, 1, 0], [6, 4, 2, 0], [9, 7, 5, 3]]


def test_a_perfect_consistency_student_samples_the_data_in_any_number_of_steps() -> None:
    exact, noise = Gaussian(Cosine(), torch.tensor(0.3), 0.5), torch.randn(40_000, 1)

    class ToTheEnd:
        schedule = Cosine()

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return exact.flow(z, t, times(0.0)[0]).to(z)

    for steps in (1, 2, 4):
        draw = torch.Generator().manual_seed(steps)
        images = sample(ToTheEnd(), noise, steps, method="consistency", generator=draw)
        assert float(images.mean()) == pytest.approx(0.3, abs=0.01)
        assert float(images.std()) == pytest.approx(0.5, abs=0.01)


def test_weights_of_a_jump_stay_a_mean_where_there_is_none() -> None:
    """At m = s the self-teacher has no weight, whatever it says and wherever the segment ends."""
    teacher, z = mixture(Cosine(math.inf, -math.inf)), torch.randn(2, 2, dtype=torch.float64)

    class Mute:
        schedule = teacher.schedule

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return per_example(t, z) * 0 + 1e6

    t, end = times(0.25, 0.75), times(0.0, 0.5)
    assert torch.equal(transitive_target(teacher, Mute(), z, t, end, end), teacher(z, t))
