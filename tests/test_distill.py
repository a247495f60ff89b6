"""`progdist.distill` on vectors and images."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError, sample
from progdist.diffusion.parameterization import PARAMETERIZATIONS, V
from progdist.training.callbacks import Progress
from support.linear import Linear, exact_teacher


@pytest.mark.slow
def test_one_call_makes_the_student_of_an_exact_teacher() -> None:
    """A linear student can do what two steps of a linear teacher do: it lands where 64 steps land, in 16."""
    teacher, noise = exact_teacher(), torch.randn(2000, 2)
    before = teacher.network.table.clone()  # pyright: ignore
    data = 0.3 + 0.5 * torch.randn(4000, 2)
    how: dict[str, Any] = {"updates": 600, "batch": 256, "learning_rate": 0.02, "weighting": "snr_plus_one"}
    student = progdist.distill(teacher, data, [64, 32, 16], **how)
    theirs, ours = sample(teacher, noise, 64), sample(student, noise, 16)
    apart = float((sample(teacher, noise, 16) - theirs).abs().max())
    assert float((ours - theirs).abs().max()) < 0.15 * apart
    assert torch.equal(before, teacher.network.table)  # pyright: ignore
    assert all(parameter.requires_grad for parameter in student.parameters())  # as in the teacher


def test_updates_by_stage_labels_and_observer() -> None:
    seen: list[tuple[int, int]] = []

    def observe(steps: int, progress: Progress) -> None:
        seen.append((steps, progress.update))

    pairs = [(torch.randn(2), index % 3) for index in range(30)]
    progdist.distill(
        exact_teacher(), iter(pairs), [8, 4, 2], updates={4: 2, 2: 3}, batch=4, label="shift", observe=observe
    )
    assert seen == [(4, 1), (4, 2), (2, 1), (2, 2), (2, 3)]


def test_microbatches_give_the_same_student() -> None:
    data, how = torch.randn(64, 2), {"updates": 5, "batch": 8, "learning_rate": 1e-2}
    whole, parts = (
        progdist.distill(exact_teacher(), data, [4, 2], gradient_accumulation_steps=n, **how) for n in (1, 4)
    )
    torch.testing.assert_close(whole.network.table, parts.network.table, rtol=1e-5, atol=1e-6)


def test_an_eps_teacher_gets_a_v_student_first() -> None:
    teacher = Denoiser(Linear(), Discrete.linear(timesteps=1024), PARAMETERIZATIONS["eps"], timesteps=1024)
    student = progdist.distill(teacher, torch.randn(32, 2), [4, 2], updates=2, conversion_updates=2, batch=4)
    assert type(student.parameterization) is type(PARAMETERIZATIONS["v"])
    assert float(student.schedule.alpha(torch.ones(()).double())) == 0
    how: dict[str, Any] = {"zero_terminal_snr": False, "updates": 1, "conversion_updates": 1, "batch": 4}
    same = progdist.distill(teacher, torch.randn(32, 2), [4, 2], **how)
    assert type(same.parameterization) is type(PARAMETERIZATIONS["v"])
    assert same.schedule == teacher.schedule
    again: list[int] = []
    progdist.distill(same, torch.randn(32, 2), [2, 1], observe=lambda steps, _: again.append(steps), updates=1, batch=4)
    assert again == [1]  # no stage 0


def ragged() -> Iterator[Tensor]:
    yield torch.zeros(2)
    yield torch.zeros(3)


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        ([], {}, "no data"),
        (torch.zeros(4, 2), {"zero_terminal_snr": True}, "the teacher's does not"),
        (torch.zeros(4, 2), {"weighting": "snrr"}, "constant, snr"),
        (list(ragged()), {"batch": 2, "updates": 1}, "one shape"),
        (torch.zeros(4, 2), {"precision": "fp16"}, "auto, float32, bf16"),
        (torch.zeros(4, 2), {"lr_scheduler": "cosine"}, "linear, constant"),
        (torch.zeros(4, 2), {"updates": {4: 1}}, r"has the keys \[4\], and the students' steps are \[2\]"),
        (torch.zeros(4, 2), {"updates": 0}, "at least 1"),
        (torch.zeros(4, 2), {"conversion_updates": 0}, "conversion_updates is 0, expected at least 1"),
        (torch.zeros(4, 2), {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        (torch.zeros(4, 2), {"batch": -4}, "batch is -4"),
        (torch.zeros(4, 2), {"seed": -1}, "seed is -1"),
        (torch.zeros(4, 2), {"learning_rate": -1.0}, "learning_rate is -1.0"),
        (torch.zeros(4, 2), {"null_class": 0}, "null_class is what guidance leads away from"),
        (torch.zeros(4, 2), {"guidance": 2.0}, "give label and null_class"),
        (torch.zeros(4, 2), {"guidance": (2.0, 1.0), "label": "shift", "null_class": 0}, r"guidance is \(2.0, 1.0\)"),
        (torch.zeros(4, 2), {"guidance": (1.0, 2.0), "label": "shift", "null_class": 0}, "not Linear: give a single"),
    ],
)
def test_mistakes_are_named(data: Any, how: dict[str, Any], message: str) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=message):
        progdist.distill(exact_teacher(), data, [4, 2], **how)


def test_a_weighting_that_is_nothing_at_one_step_is_refused() -> None:
    network = exact_teacher().network
    flow = Denoiser(network, RectifiedFlow(), PARAMETERIZATIONS["velocity"])
    with pytest.raises(UserError, match="0 at t = 1"):
        progdist.distill(flow, torch.zeros(4, 2), [4, 2, 1], weighting="snr")
    progdist.distill(flow, torch.zeros(4, 2), [4, 2], weighting="snr", updates=1, batch=2)


def test_the_callers_random_numbers_and_environment_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, how = torch.randn(16, 2), {"updates": 3, "batch": 8, "learning_rate": 1e-2}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    plain = progdist.distill(exact_teacher(), data, [4, 2], **how)
    assert torch.equal(torch.rand(3), expected)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    again = progdist.distill(exact_teacher(), data, [4, 2], **how)
    assert torch.equal(plain.network.table, again.network.table)  # pyright: ignore


def test_a_student_comes_back_to_where_its_teacher_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []
    to = Denoiser.to

    def watched(self: Denoiser, *where: Any, **how: Any) -> Denoiser:  # noqa: ANN401
        seen.append(where[0])
        return to(self, *where, **how)

    monkeypatch.setattr(Denoiser, "to", watched)
    student = progdist.distill(exact_teacher(), torch.randn(8, 2), [4, 2], updates=1, batch=4)
    assert seen[-1] == torch.device("cpu")
    assert sample(student, torch.randn(3, 2), 2).shape == (3, 2)


class OwnOutput(V):
    """A user's own."""


def test_an_output_of_ones_own_can_be_distilled() -> None:
    teacher = Denoiser(exact_teacher().network, Cosine(), OwnOutput())
    student = progdist.distill(teacher, torch.randn(8, 2), [4, 2], updates=1, batch=4)
    assert type(student.parameterization) is OwnOutput


class FixedFrequencies(nn.Module):
    """A network with a parameter that its author froze."""

    def __init__(self) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(2), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return (self.frequency * timestep[:, None] / 1000).sin() * self.scale * z


def test_what_the_author_froze_stays() -> None:
    network = FixedFrequencies()
    teacher = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"])
    student = progdist.distill(teacher, torch.randn(8, 2), [4, 2], updates=5, batch=4, learning_rate=0.1)
    assert torch.equal(student.network.frequency, torch.ones(2))  # pyright: ignore[reportArgumentType]
    assert not torch.equal(student.network.scale, torch.ones(2))  # pyright: ignore[reportArgumentType]
    whole = progdist.distill(
        Denoiser(copy.deepcopy(network).requires_grad_(False), Cosine(), PARAMETERIZATIONS["v"]),
        torch.randn(8, 2), [4, 2], updates=5, batch=4, learning_rate=0.1,
    )  # fmt: skip
    assert not torch.equal(whole.network.scale, torch.ones(2))  # pyright: ignore[reportArgumentType]


class Guidable(nn.Module):
    """Gaussians of one width around 0, -1 and 1 by class, 1 + p (g - 1) times those with guidance g, else q times."""

    def __init__(self) -> None:
        super().__init__()
        self.line = exact_teacher(mean=1.0).network.requires_grad_(False)
        self.p, self.q = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, timestep: Tensor, label: Tensor, guidance: Tensor | None = None) -> Tensor:
        rest = self.line(torch.zeros_like(z), timestep)
        factor = self.q if guidance is None else 1 + self.p * (guidance.float() - 1)
        mean = torch.tensor([0.0, -1.0, 1.0])[label] * factor
        return self.line(z, timestep) + (mean[:, None] - 1) * rest


@pytest.mark.parametrize("guidance", [3.0, (1.0, 4.0)])
def test_guidance_is_learned_where_it_is_known_exactly(guidance: float | tuple[float, float]) -> None:
    """Means g m of the guided teacher, by one scale for all or by each that is asked of the student."""
    teacher = Denoiser(Guidable(), Cosine(), PARAMETERIZATIONS["v"])
    data = [(torch.randn(2), 1 + number % 2) for number in range(64)]
    how: dict[str, Any] = {"label": "label", "null_class": 0, "batch": 16, "learning_rate": 0.03, "updates": 1}
    how |= {"conversion_updates": 200, "weighting": "constant", "precision": "float32"}
    student = progdist.distill(teacher, data, [32, 16], guidance=guidance, **how)
    noise, labels = torch.randn(64, 2), torch.full((64,), 2)
    for scale in (3.0,) if isinstance(guidance, float) else (1.0, 2.0, 4.0):
        told = None if isinstance(guidance, float) else scale
        made = progdist.sample(student, noise, 16, label=labels, guidance=told)
        exact = progdist.sample(exact_teacher(mean=scale), noise, 16)
        assert float((made - exact).abs().mean()) < 0.1
    assert not teacher.network.get_parameter("p").any()
