"""`sample` and `check` in Python on networks of one's own: their conditions, and what is refused in one line."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError
from support.linear import exact_teacher


class Conditioned(nn.Module):
    """x = what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)

    def forward(self, z: Tensor, timestep: Tensor, shift: Tensor, image: Tensor | None = None) -> Tensor:
        self.seen = shift, image
        return (
            self.line(z) * 0 + shift.reshape(len(z), -1) + (0 if image is None else image.flatten(1).mean(1)[:, None])
        )


class Returning(nn.Module):
    """A line of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return self.line(z)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (np.array([1.0, 2.0]), [1.0, 2.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        (0.25, [0.25, 0.25]),
        (np.float64(0.25), [0.25, 0.25]),
        (torch.tensor(3), [3.0, 3.0]),
        (torch.tensor([[0.5, 0.25, 0.125]]), None),  # a row for all
    ],
)
def test_conditions_of_any_form_are_told_to_the_network(shift: Any, expected: list[float] | None) -> None:  # noqa: ANN401
    denoiser = Denoiser(Conditioned(), Cosine(), "sample")
    made = progdist.sample(denoiser, torch.randn(2, 3), 2, shift=shift)
    wanted = (
        torch.tensor([[0.5, 0.25, 0.125]] * 2) if expected is None else torch.tensor(expected)[:, None].expand(2, 3)
    )
    torch.testing.assert_close(made, wanted)
    image = torch.arange(2 * 4.0).reshape(2, 1, 2, 2)
    told = progdist.sample(denoiser, torch.randn(2, 3), 2, shift=shift, image=image)
    torch.testing.assert_close(told, wanted + torch.tensor([[1.5], [5.5]]))


@pytest.mark.parametrize(
    ("noise", "how", "message"),
    [
        (torch.zeros(2, 5), {}, r"does not take noise \(2, 5\) of torch.float32 \(mat1 and mat2 shapes"),
        (torch.zeros(2, 3).double(), {}, r"does not take noise \(2, 3\) of torch.float64"),
        (torch.zeros(2, 3).long(), {}, r"noise is \(2, 3\) of torch.int64, expected floats"),
        (torch.zeros(3), {}, r"noise is \(3,\)"),
        (np.zeros((2, 3)), {}, "noise is a ndarray, expected a tensor"),
        (torch.zeros(2, 3), {"steps": 0}, "steps is 0"),
        (torch.zeros(2, 3), {"steps": 2.0}, "steps is 2.0"),
        (torch.zeros(2, 3), {"method": "foo"}, "'foo' is unknown"),
        (torch.zeros(2, 3), {"method": 3}, "sampling method 3 is unknown"),
        (torch.zeros(2, 3), {"generator": 3}, "generator is a int, expected a torch.Generator"),
        (torch.zeros(2, 3), {"shift": torch.zeros(3)}, "condition 'shift' has 3 rows, expected 2"),
        (torch.zeros(2, 3), {"shift": "a"}, "condition 'shift' is a str"),
        (torch.zeros(2, 3), {"shift": None}, "condition 'shift' is a NoneType"),
        (torch.zeros(2, 3), {"label": 1}, "got an unexpected keyword argument 'label'"),
    ],
)
def test_what_sample_cannot_use_is_named(noise: Any, how: dict[str, Any], message: str) -> None:  # noqa: ANN401
    options = {"steps": 2, "shift": 0.0, **how}
    with pytest.raises(UserError, match=message) as caught:
        progdist.sample(Denoiser(Conditioned(), Cosine(), "sample"), noise, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [
    lambda given: progdist.sample(given, torch.zeros(2, 3), 2),
    lambda given: progdist.check(given, torch.zeros(4, 3)),
    lambda given: progdist.evaluate(given, torch.zeros(4, 1, 8, 8)),
    lambda given: progdist.save(given, "nowhere"),
    lambda given: progdist.distill(given, torch.zeros(4, 3), [4, 2]),
    lambda given: progdist.distillation_target(given, torch.zeros(2, 3), torch.ones(()), torch.zeros(())),
    lambda given: progdist.denoising_loss(given, *torch.zeros(2, 2, 3), torch.zeros(2), weighting="snr"),
    lambda given: progdist.distillation_loss(given, given, *[torch.zeros(2, 3)] * 3, steps=2, weighting="snr"),
])  # fmt: skip
def test_a_network_is_to_be_wrapped_everywhere(call: Any) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=r"got the network Linear: wrap it in progdist.Denoiser\(network, schedule"):
        call(nn.Linear(3, 3))


def test_a_teacher_of_ones_own_is_checked_on_examples() -> None:
    """Exact for N(0.3, 0.5^2): what it is denoises best, and what it is not is told in the words of the call."""
    teacher, x = exact_teacher(), 0.3 + 0.5 * torch.randn(512, 2)
    data = [(row, 0.0) for row in x]
    for examples, label in ((x, None), (data, "shift"), ({"x": x, "shift": torch.zeros(512)}, None)):
        checked = progdist.check(teacher, examples, label=label)
        assert min(checked.errors, key=lambda name: checked.errors[name]) == "v"
        assert "prediction_type" not in (checked.problem or "")
    wrong = progdist.check(teacher.with_parts(prediction_type="eps"), x)
    assert wrong.problem
    assert wrong.problem.endswith("give prediction_type='v'")
    with pytest.raises(UserError, match=r"does not take data \(1, 8, 8\)"):
        progdist.check(Denoiser(Returning(), Cosine(), "v"), "digits")
    with pytest.raises(UserError, match="is not a folder"):
        progdist.check(Path("nowhere"), "digits")


def test_samples_of_eps_that_explode_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """A cosine table as of Nichol & Dhariwal ends at an alpha of 5e-5, which multiplies an error of eps by 20,000."""
    angle = torch.cos((torch.linspace(0, 1000, 1001).double() / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    table = torch.cumprod(1 - (1 - angle[1:] / angle[:-1]).clip(0, 0.999), 0)

    class Nearly(nn.Module):
        def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
            return 0.99 * z

    denoiser, noise = Denoiser(Nearly(), Discrete(table), "epsilon"), torch.randn(64, 2)
    with caplog.at_level(logging.WARNING, "progdist"):
        progdist.sample(denoiser, noise, 1)
        assert "predicts eps on a schedule that ends at a signal-to-noise ratio of" in caplog.text
        assert "pass clip=True" in caplog.text
        caplog.clear()
        progdist.sample(denoiser, noise, 1, clip=True)
        progdist.sample(Denoiser(Nearly(), Discrete.linear(), "epsilon"), noise, 1)
        assert not caplog.text


def test_a_student_of_another_schedule_than_its_teacher_is_refused() -> None:
    teacher, x = exact_teacher(), torch.randn(2, 8, 2)
    u, how = torch.rand(8, dtype=torch.float64), {"steps": 4, "weighting": "constant"}
    other = teacher.with_parts(schedule=RectifiedFlow(), prediction_type="x")
    with pytest.raises(
        UserError, match=r"expected one schedule for student and teachers, got Cosine.* and RectifiedFlow"
    ):
        progdist.distillation_loss(teacher, other, *x, u, **how)
    same = Denoiser(teacher.network, Cosine(), "v")
    single = progdist.distillation_loss(teacher, same, *x, u.float(), **how)
    assert torch.equal(single, progdist.distillation_loss(teacher, same, *x, u.float().double(), **how))


class Entries(nn.Module):
    """x = z in a table of 1000 times: alpha z is nearer to x than anything it is not said to be."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, 2)
        nn.init.zeros_(self.table.weight)

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return 0.3 + 0 * z + self.table(timestep)


@pytest.mark.parametrize("schedule", [Discrete.linear(), Discrete.scaled_linear(), Discrete.linear().rescaled()])
def test_a_network_whose_time_is_a_table_can_be_checked(schedule: Discrete) -> None:
    """At its entries; of data that are all 0.3 it is exact."""
    teacher = Denoiser(Entries(1000), schedule, "x")
    checked = progdist.check(teacher, torch.full((64, 2), 0.3))
    assert checked.problem is None
    assert checked.errors["x"] == pytest.approx(0, abs=1e-9)
    assert checked.shifts.keys() == {-2, -1, 0, 1, 2}
    with pytest.raises(
        UserError, match=r"between two entries: .* and a method that calls it at whole steps, e.g. ddim"
    ):
        progdist.sample(teacher, torch.randn(2, 2), 500, method="rk4")


def test_no_shift_is_measured_of_a_network_that_counts_no_timesteps() -> None:
    teacher = Denoiser(Returning(), progdist.VarianceExploding(), "x")
    assert progdist.check(teacher, torch.randn(64, 3)).shifts == {}
