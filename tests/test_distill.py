"""`progdist.distill` on vectors and images."""

# pyright: reportArgumentType=false

import copy
import io
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError, VarianceExploding, sample
from progdist.data.examples import ExampleData
from progdist.diffusion.parameterization import PARAMETERIZATIONS, V
from progdist.methods import METHODS
from progdist.methods.guidance import Clipped
from progdist.methods.progressive import distillation_loss
from progdist.training.batches import Batches, collate
from progdist.training.callbacks import Progress
from progdist.training.early_stopping import EarlyStopping
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
    assert torch.equal(before, teacher.network.table)
    assert all(parameter.requires_grad for parameter in student.parameters())  # as in the teacher


def test_updates_by_stage_labels_and_observer() -> None:
    seen: list[tuple[int, int]] = []

    def observe(steps: int, progress: Progress) -> None:
        seen.append((steps, progress.update))

    pairs = [(torch.randn(2), index % 3) for index in range(30)]
    progdist.distill(
        exact_teacher(),
        iter(pairs),
        [8, 4, 2],
        updates=2,
        stages={2: {"updates": 3}},
        batch=4,
        label="shift",
        observe=observe,
    )
    assert seen == [(4, 1), (4, 2), (2, 1), (2, 2), (2, 3)]


class Screen(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("place", "how", "shown"),
    [(Screen, {}, True), (Screen, {"progress": False}, False), (io.StringIO, {}, False)],
)
def test_a_bar_for_each_stage_where_there_is_a_terminal(
    place: type[io.StringIO], how: dict[str, Any], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = place()
    monkeypatch.setattr(sys, "stderr", screen)
    progdist.distill(exact_teacher(), torch.randn(8, 2), [8, 4, 2], updates=2, batch=4, **how)
    for words in ("4 steps: 100%", "2 steps: 100%", "2/2", "loss "):
        assert (words in screen.getvalue()) == shown
    with pytest.raises(UserError, match="progress is 1, expected True or False"):
        progdist.distill(exact_teacher(), torch.randn(8, 2), [8, 4], progress=1)


def test_an_examples_own_conditions_reach_the_network() -> None:
    """Numbers and tensors of any shape, each beside its example, in stage 0 and every stage, to teacher and student."""
    calls: list[dict[str, Tensor]] = []

    class Conditioned(Linear):
        def forward(self, z: Tensor, timestep: Tensor, shift: Tensor | None = None, **condition: Tensor) -> Tensor:
            assert shift is not None
            calls.append({"shift": shift, **condition})
            return super().forward(z, timestep, shift)

    def own(number: int) -> dict[str, Any]:
        return {
            "shift": number + 0.5,
            "count": number,
            "frame": torch.tensor([number, -number], dtype=torch.int32),
            "words": torch.full((3, 5), float(number)),
            "place": torch.tensor(float(number), dtype=torch.float64),
            "mask": torch.arange(4) < number,
        }

    schedule = Discrete.linear(num_train_timesteps=1024)
    teacher = Denoiser(Conditioned(), schedule, "epsilon", num_train_timesteps=1024)
    pairs = ((torch.randn(2), own(number)) for number in range(6))
    progdist.distill(teacher, pairs, [8, 4, 2], updates=2, batch=4, conversion={"updates": 3})
    assert len(calls) == 1 + 3 * 2 + 2 * 2 * 3  # tried once; a student and its teacher: once in stage 0, then twice
    seen: set[int] = set()
    for call in calls:
        numbers = call["count"].tolist()
        expected = [(torch.zeros(2), own(number)) for number in numbers]
        torch.testing.assert_close(call, {name: each for name, each in collate(expected).items() if name != "x"})
        assert [call[name].dtype for name in ("shift", "count", "frame", "words", "place", "mask")] == [
            torch.float32, torch.int64, torch.int64, torch.float32, torch.float64, torch.bool,
        ]  # fmt: skip
        seen |= {*numbers}
    assert seen == {*range(6)}


@pytest.mark.parametrize("stop", [None, EarlyStopping(every=1, window=2, held_out=8)])
def test_a_condition_is_beside_its_example_as_a_label_is(stop: EarlyStopping | None) -> None:
    """The same numbers by name, or as labels under that name, make the same student; others make another."""
    data, how = torch.randn(32, 2), {"updates": 4, "batch": 4, "learning_rate": 1e-2, "stop": stop}
    named, labelled, mixed, other = (
        progdist.distill(
            exact_teacher(), [(x, told(number)) for number, x in enumerate(data)], [4, 2], **options, **how
        )
        for told, options in (
            (lambda number: {"shift": float(number % 3)}, {}),
            (lambda number: number % 3, {"label": "shift"}),
            (lambda number: {"labels": number % 3}, {"label": "shift"}),
            (lambda number: {"shift": float((number + 1) % 3)}, {}),
        )
    )
    assert torch.equal(named.network.table, labelled.network.table)
    assert torch.equal(named.network.table, mixed.network.table)
    assert not torch.equal(named.network.table, other.network.table)


def test_labels_of_ones_own_are_a_condition_like_others() -> None:
    """Under their own name, where no other is given; a keyword for labels that there are not is a mistake."""

    class Labelled(Linear):
        def forward(self, z: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:  # pyright: ignore
            return super().forward(z, timestep, labels)

    teacher, pairs = Denoiser(Labelled(), Cosine(), "v"), [(torch.randn(2), {"labels": index}) for index in range(8)]
    progdist.distill(teacher, pairs, [4, 2], updates=1, batch=4)  # a label that is not handed on is a TypeError
    with pytest.raises(UserError, match="label='shift' requires a label for every example, and example 0 has none"):
        progdist.distill(exact_teacher(), [(x, {"place": 1.0}) for x, _ in pairs], [4, 2], label="shift")


def test_a_stage_overrides_what_it_says() -> None:
    """Only there, and as if all were told so."""
    rates: list[tuple[int, float]] = []

    def observe(steps: int, progress: Progress) -> None:
        rates.append((steps, progress.learning_rate))

    data, how = torch.randn(16, 2), {"updates": 2, "batch": 4, "learning_rate": 0.5, "lr_scheduler": "constant"}
    last = {2: {"learning_rate": 0.25, "weight_decay": 0.5}}
    several = progdist.distill(exact_teacher(), data, [8, 4, 2], stages=last, observe=observe, **how)
    assert rates == [(4, 0.5), (4, 0.5), (2, 0.25), (2, 0.25)]
    plain = progdist.distill(exact_teacher(), data, [8, 4, 2], stages={2: {"learning_rate": 0.25}}, **how)
    assert not torch.equal(several.network.table, plain.network.table)  # its weights decay
    alike = {steps: {"learning_rate": 0.25} for steps in (4, 2)}
    every = progdist.distill(exact_teacher(), data, [8, 4, 2], stages=alike, **how)
    told = progdist.distill(exact_teacher(), data, [8, 4, 2], **{**how, "learning_rate": 0.25})
    assert torch.equal(every.network.table, told.network.table)


def test_stage_0_takes_four_times_the_updates_unless_it_says_others() -> None:
    seen: list[int] = []
    teacher = Denoiser(
        Linear(), Discrete.linear(num_train_timesteps=1024), PARAMETERIZATIONS["eps"], num_train_timesteps=1024
    )
    how: dict[str, Any] = {"updates": 2, "batch": 4, "observe": lambda steps, progress: seen.append(steps)}
    progdist.distill(teacher, torch.randn(16, 2), [4, 2], **how)
    assert seen == [4] * 8 + [2] * 2
    seen.clear()
    progdist.distill(teacher, torch.randn(16, 2), [4, 2], conversion={"updates": 3}, **how)
    assert seen == [4] * 3 + [2] * 2


@pytest.mark.parametrize(("method", "ema"), [("balanced", 0.0), ("stochastic", 0.0), ("tract", 0.0), ("tract", 0.5)])
def test_other_methods_are_those_of_recipes(method: str, ema: float) -> None:
    """By name or as the object itself, and another student than that of progressive distillation."""
    data, how = torch.randn(32, 2), {"updates": 3, "batch": 8, "learning_rate": 1e-2, "ema": ema}
    named = progdist.distill(exact_teacher(), data, [8, 4], method=method, **how)
    given = progdist.distill(exact_teacher(), data, [8, 4], method=METHODS[method], **how)
    other = progdist.distill(exact_teacher(), data, [8, 4], **how)
    assert torch.equal(named.network.table, given.network.table)
    assert not torch.equal(named.network.table, other.network.table)


@pytest.mark.slow
def test_a_method_makes_the_student_of_an_exact_teacher() -> None:
    """Transitive closure in one stage from 64 steps to 16: a linear student lands where they land."""
    teacher, noise = exact_teacher(), torch.randn(2000, 2)
    how: dict[str, Any] = {"updates": 1200, "batch": 256, "learning_rate": 0.02, "weighting": "snr_plus_one"}
    student = progdist.distill(teacher, 0.3 + 0.5 * torch.randn(4000, 2), [64, 16], method="tract", ema=0.5, **how)
    theirs, ours = sample(teacher, noise, 64), sample(student, noise, 16)
    apart = float((sample(teacher, noise, 16) - theirs).abs().max())
    assert float((ours - theirs).abs().max()) < 0.15 * apart


def test_microbatches_give_the_same_student() -> None:
    data, how = torch.randn(64, 2), {"updates": 5, "batch": 8, "learning_rate": 1e-2}
    whole, parts = (
        progdist.distill(exact_teacher(), data, [4, 2], gradient_accumulation_steps=n, **how) for n in (1, 4)
    )
    torch.testing.assert_close(whole.network.table, parts.network.table, rtol=1e-5, atol=1e-6)


def test_an_eps_teacher_gets_a_v_student_first() -> None:
    teacher = Denoiser(
        Linear(), Discrete.linear(num_train_timesteps=1024), PARAMETERIZATIONS["eps"], num_train_timesteps=1024
    )
    student = progdist.distill(teacher, torch.randn(32, 2), [4, 2], updates=2, conversion={"updates": 2}, batch=4)
    assert type(student.parameterization) is type(PARAMETERIZATIONS["v"])
    assert float(student.schedule.alpha(torch.ones(()).double())) == 0
    how: dict[str, Any] = {"zero_terminal_snr": False, "updates": 1, "conversion": {"updates": 1}, "batch": 4}
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
        (torch.zeros(4, 2), {"zero_terminal_snr": True}, "applies only to a schedule that ends above zero SNR"),
        (torch.zeros(4, 2), {"weighting": "snrr"}, "constant, snr"),
        (list(ragged()), {"batch": 2, "updates": 1}, "one shape"),
        (torch.zeros(4, 2), {"precision": "fp16"}, "auto, float32, bf16"),
        (torch.zeros(4, 2), {"lr_scheduler": "cosine"}, "linear, constant"),
        (
            torch.zeros(4, 2),
            {"stages": {4: {"updates": 1}}},
            r"stages has the key 4, but the students take 2 steps",
        ),
        (torch.zeros(4, 2), {"stages": {2: {"updates": 0}}}, "updates is 0, expected at least 1"),
        (
            torch.zeros(4, 2),
            {"stages": {2: {"update": 1}}},
            "training option 'update' is unknown: did you mean upd",
        ),
        (torch.zeros(4, 2), {"stages": {2: {"batch": 2}}}, "batch applies to all stages"),
        (torch.zeros(4, 2), {"stages": {2: {"ema": 0.5}}}, "ema applies to all stages"),
        (torch.zeros(4, 2), {"checkpoint_every": 2}, "checkpoint_every applies only to runs in a folder"),
        (torch.zeros(4, 2), {"stages": {2: {"checkpoint_every": 2}}}, "checkpoint_every applies only to runs"),
        (torch.zeros(4, 2), {"conversion": {"checkpoint_every": 2}}, "checkpoint_every applies only to runs"),
        (torch.zeros(4, 2), {"conversion": {"updates": 2}}, "conversion has no effect, because this teacher needs no"),
        (torch.zeros(4, 2), {"guidance": (2.0, 2.0), "label": "shift", "null_class": 0}, "is not a range"),
        ([(torch.zeros(2), {"steps": 1})], {}, "steps"),
        (torch.zeros(4, 2), {"clips": 1.0}, "training option 'clips' is unknown: use one of updates, "),
        (torch.zeros(4, 2), {"conversion": {"guidance": 1.0}}, "training option 'guidance' is unknown"),
        (
            torch.zeros(4, 2),
            {"method": "tracts"},
            "'tracts' is unknown: use one of progressive, balanced, adversarial, stochastic, tract",
        ),
        (torch.zeros(4, 2), {"updates": 0}, "at least 1"),
        (torch.zeros(4, 2), {"conversion": {"updates": 0}}, "updates is 0, expected at least 1"),
        (torch.zeros(4, 2), {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        (torch.zeros(4, 2), {"batch": -4}, "batch is -4"),
        (torch.zeros(4, 2), {"seed": -1}, "seed is -1"),
        (torch.zeros(4, 2), {"learning_rate": -1.0}, "learning_rate is -1.0"),
        (torch.zeros(4, 2), {"null_class": 0}, "null_class requires guidance"),
        (torch.zeros(4, 2), {"guidance": 2.0}, "guidance requires label and null_class"),
        (
            torch.zeros(4, 2),
            {"guidance": (2.0, 1.0), "label": "shift", "null_class": 0},
            "guidance is 2 to 1, exp",
        ),
        (
            [(torch.zeros(2), 0)],
            {"guidance": (1.0, 2.0), "label": "shift", "null_class": 0},
            "got a Linear: give a single",
        ),
    ],
)
def test_mistakes_are_named(data: Any, how: dict[str, Any], message: str) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=message):
        progdist.distill(exact_teacher(), data, [4, 2], **how)


def test_a_weighting_that_is_nothing_at_one_step_is_refused() -> None:
    network = exact_teacher().network
    flow = Denoiser(network, RectifiedFlow(), PARAMETERIZATIONS["velocity"])
    for chain in ([4, 2, 1], [4, 2], [64, 32]):
        with pytest.raises(UserError, match=r"the weighting is 0 at t = 1, .*: use truncated_snr"):
            progdist.distill(flow, torch.zeros(4, 2), chain, weighting="snr")
    paper = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"])
    with pytest.raises(UserError, match=r"the weighting is 2.1e-09 at t = 1"):
        progdist.distill(paper, torch.zeros(4, 2), [4, 2], weighting="snr")
    table = Denoiser(network, Discrete.linear(), PARAMETERIZATIONS["eps"])
    with pytest.raises(UserError, match="the weighting is 0 at t = 1"):  # of stage 0, whose student ends in pure noise
        progdist.distill(table, torch.zeros(4, 2), [4, 2], conversion={"weighting": "snr"})


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (torch.zeros_like, "the weighting is 0 at t = 1, .*: use truncated_snr"),
        (lambda snr: 0 * snr, "the weighting is 0 at t = 1"),
        (lambda snr: (snr > 1e9).double(), "the weighting is 0 at t = 1"),
        (lambda snr: torch.full_like(snr, torch.nan), "the weighting is nan at t = 0.016, expected 0 or more"),
        (lambda snr: snr.log(), r"the weighting is -0.0\d+ at t = 0.5"),
        (lambda snr: torch.where(snr < 0.1, torch.nan, snr), "the weighting is nan at t = 0.8"),
    ],
)
def test_a_weighting_that_is_none_is_refused_at_once(weighting: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        progdist.distill(exact_teacher(), torch.zeros(4, 2), [4, 2], weighting=weighting)


@pytest.mark.parametrize(
    "schedule", [VarianceExploding(0.01, 1348.0), VarianceExploding(), VarianceExploding(0.01, 50.0, 3.0)]
)
def test_an_eps_teacher_of_exploding_variance_gets_a_student_of_x(schedule: VarianceExploding) -> None:
    """Which counts the same at every noise level, where v is of the size of the noise."""
    teacher = Denoiser(Labelled(), schedule, "epsilon")
    student = progdist.distill(teacher, torch.randn(16, 2), [4, 2], updates=1, batch=8)
    assert (student.parameterization.name, student.schedule) == ("x", schedule)
    assert sample(student, torch.randn(3, 2), 2).isfinite().all()


def test_only_a_weighting_that_helps_is_named() -> None:
    """An error of v is one of x by 1 / sigma where sigma is large: the default is in use, and is too small there."""
    how: dict[str, Any] = {"updates": 1, "batch": 4}
    teacher, x = Denoiser(Labelled(), VarianceExploding(0.01, 1348.0), "v"), torch.randn(16, 2)
    message = r"the weighting is 1 at t = 1, of the output v 5.5e-07, .* and 1 at t = 0.5, .*: use constant$"
    with pytest.raises(UserError, match=message):
        progdist.distill(teacher, x, [4, 2], **how)
    progdist.distill(teacher, x, [4, 2], weighting="constant", **how)


def test_a_distilled_teacher_is_distilled_on_from_where_it_is() -> None:
    how: dict[str, Any] = {"updates": 1, "batch": 4}
    student = progdist.distill(exact_teacher(), torch.randn(8, 2), [16, 8], **how)
    for chain in ([16, 8], [4, 2], [64, 32]):
        with pytest.raises(UserError, match=f"distilled for 8 steps, but the chain starts at {chain[0]}: start the"):
            progdist.distill(student, torch.randn(8, 2), chain, **how)
    further = progdist.distill(student, torch.randn(8, 2), [8, 4], **how)
    assert (further.history["steps"], further.history["lineage"]) == ((4,), (16, 8))


def test_a_method_of_ones_own_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Its student is the same; a folder does not say that another method made it."""
    how: dict[str, Any] = {"updates": 2, "batch": 4}
    data = torch.randn(8, 2)
    mine = replace(METHODS["progressive"], name="mine")
    student, same = (
        progdist.distill(exact_teacher(), data, [4, 2], method=each, **how) for each in (mine, "progressive")
    )
    assert student.history["method"] == "mine"
    assert torch.equal(student.network.table, same.network.table)
    progdist.save(student, tmp_path / "student")
    loaded = progdist.load(tmp_path / "student", Linear())
    assert (loaded.history["steps"], loaded.history["method"]) == ((2,), "")


def test_a_weighting_that_vanishes_would_leave_the_first_step_unlearned() -> None:
    """Why: a student of two steps whose network knows nothing but the time, and learns x = 1 at both of its times.

    One number for each time, under Adam: what is not weighed at t = 1 stays where it was.
    """

    class Table(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.values = torch.nn.Parameter(torch.full((2,), value))

        def forward(self, z: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return self.values[((timestep + 1) / 512).round().long() - 1][:, None].expand_as(z)

    student, teacher = (Denoiser(Table(value), Cosine(), PARAMETERIZATIONS["x"]) for value in (0.0, 1.0))
    gradients = {}
    for name in ("snr", "truncated_snr"):
        x, eps, u = torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0.0, 0.5], dtype=torch.float64)
        loss = distillation_loss(student, teacher, x, eps, u, steps=2, weighting=name)
        gradients[name] = torch.autograd.grad(loss.sum(), next(student.parameters()))[0].abs()
    assert gradients["snr"][1] < 1e-8 * gradients["snr"][0]
    assert gradients["truncated_snr"][1] > 0.5 * gradients["truncated_snr"][0]


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
    assert torch.equal(plain.network.table, again.network.table)


class Counting(Linear):
    """Counts its calls; `draws` says at which."""

    def __init__(self, draws: Callable[[int], bool]) -> None:
        super().__init__()
        self.draws = draws
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("anew", torch.zeros(()))

    def forward(self, z: Tensor, timestep: Tensor, shift: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.anew = self.anew + 1
        noise = torch.randn(()) if self.draws(int(self.calls)) else 0
        return super().forward(z, timestep, shift) + noise * 0


@pytest.mark.parametrize("draws", [lambda call: True, lambda call: call % 2 == 0, lambda call: call == 4])
def test_buffers_are_updated_once_an_update_whenever_a_network_draws(draws: Callable[[int], bool]) -> None:
    """As in a network that does not draw."""
    counts = []
    for rule in (draws, lambda call: False):
        teacher = Denoiser(Counting(rule), Cosine(), "v", num_train_timesteps=1024)
        student = progdist.distill(teacher, torch.ones(16, 2), [4, 2], updates=5, batch=4, ema=0)
        counts.append([float(student.network.get_buffer(name)) for name in ("calls", "anew")])
    assert counts[0] == counts[1]
    assert counts[0][0] >= 5


def test_examples_of_which_some_draw_are_the_same_whatever_came_first() -> None:
    """Batches of a resumed stage are those of one that was not interrupted."""

    class Sometimes(Dataset[Tensor]):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> Tensor:
            return torch.full((2,), float(index)) + (torch.rand(2) / 2 if index % 2 else 0)

    data = ExampleData(Sometimes())
    before = torch.get_rng_state()
    whole = list(Batches(data, 4, 0, 1)(0, 8, slice(4)))
    for first in range(8):
        part = list(Batches(data, 4, 0, 1)(first, 8, slice(4)))
        assert all(torch.equal(a["x"], b["x"]) for a, b in zip(whole[first:], part, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


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
    assert torch.equal(student.network.frequency, torch.ones(2))
    assert not torch.equal(student.network.scale, torch.ones(2))
    whole = progdist.distill(
        Denoiser(copy.deepcopy(network).requires_grad_(False), Cosine(), PARAMETERIZATIONS["v"]),
        torch.randn(8, 2), [4, 2], updates=5, batch=4, learning_rate=0.1,
    )  # fmt: skip
    assert not torch.equal(whole.network.scale, torch.ones(2))


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
    how |= {"conversion": {"updates": 200, "warmup": 0}, "weighting": "constant", "precision": "float32"}
    student = progdist.distill(teacher, data, [32, 16], guidance=guidance, **how)
    noise, labels = torch.randn(64, 2), torch.full((64,), 2)
    for scale in (3.0,) if isinstance(guidance, float) else (1.0, 2.0, 4.0):
        told = None if isinstance(guidance, float) else scale
        made = progdist.sample(student, noise, 16, label=labels, guidance=told)
        exact = progdist.sample(exact_teacher(mean=scale), noise, 16)
        assert float((made - exact).abs().mean()) < 0.1
    assert not teacher.network.get_parameter("p").any()


def test_a_configuration_stands_for_loose_options() -> None:
    data, options = torch.randn(16, 2), {"updates": 2, "batch": 4, "learning_rate": 0.5}
    loose = progdist.distill(exact_teacher(), data, [4, 2], lr_scheduler="constant", **options)
    config = progdist.TrainConfig(**options)
    one = progdist.distill(exact_teacher(), data, [4, 2], config=config)
    assert torch.equal(loose.network.table, one.network.table)
    more = progdist.distill(exact_teacher(), data, [4, 2], config=config, learning_rate=0.25)
    assert not torch.equal(more.network.table, one.network.table)


def test_stage_0_has_a_weighting_of_its_own() -> None:
    teacher, data = Denoiser(Linear(), Discrete.linear(num_train_timesteps=1024), "epsilon"), torch.randn(32, 2)
    how: dict[str, Any] = {"updates": 2, "batch": 4}
    plain, other = (
        progdist.distill(teacher, data, [4, 2], conversion={"updates": 2, "weighting": weighting}, **how)
        for weighting in ("truncated_snr", "snr_plus_one")
    )
    assert not torch.equal(plain.network.table, other.network.table)


class Labelled(nn.Module):
    """Knows a label by a keyword of its own, or is told none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.seen: list[Tensor] = []

    def forward(self, z: Tensor, timestep: Tensor, y: Tensor | None = None) -> Tensor:
        if y is not None:
            self.seen.append(y)
        return self.scale * z


def test_labels_are_taken_refused_or_passed_over_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """Never dropped where the network could take them, never made up where they are missing."""
    x, how = torch.randn(16, 2), {"updates": 1, "batch": 4}
    labels = torch.rand(16)
    teacher = Denoiser(Labelled(), Cosine(), "v")
    data = torch.utils.data.TensorDataset(x, labels)
    with pytest.raises(UserError, match=r"the examples have labels, which Labelled takes by keyword: pass label='y'"):
        progdist.distill(teacher, data, [4, 2], **how)
    with pytest.raises(UserError, match="label='y' requires a label for every example"):
        progdist.distill(teacher, x, [4, 2], label="y", **how)
    student = progdist.distill(teacher, data, [4, 2], label="y", **how)
    assert torch.isin(torch.cat(student.network.seen), labels).all()
    with caplog.at_level(logging.WARNING, "progdist"):
        progdist.distill(Denoiser(FixedFrequencies(), Cosine(), "v"), data, [4, 2], **how)
    assert "the labels of the examples are ignored" in caplog.text


class Units(Denoiser):
    """Data in units of 5."""

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return 5 * super().forward(z / 5, t, **condition)


class Offset(Denoiser):
    """With a parameter, a buffer and a layer of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, Discrete.linear(), "x")
        self.scale, self.layer = nn.Parameter(torch.ones(1)), nn.Linear(2, 2).half()
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.scale * super().forward(z, t, **condition)


def test_a_student_shares_nothing_with_its_teacher() -> None:
    """What a subclass holds itself is copied, too, in the types of the teacher's."""
    teacher = Offset(Labelled())
    before = copy.deepcopy(teacher.state_dict())
    student = progdist.distill(teacher, torch.randn(16, 2), [4, 2], updates=1, batch=4)
    mine = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert not mine & {tensor.data_ptr() for tensor in student.state_dict().values()}
    types = {name: tensor.dtype for name, tensor in before.items()}
    assert {name: tensor.dtype for name, tensor in student.state_dict().items()} == types
    with torch.no_grad():
        for parameter in student.half().parameters():
            parameter.zero_()
    for name, tensor in teacher.state_dict().items():
        assert tensor.dtype == types[name]
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("prediction_type", ["x", "eps"])
def test_the_student_of_a_subclass_is_one(prediction_type: str) -> None:
    """With next to no learning it is its teacher, in units of 5, too; stage 0 keeps the class."""
    teacher = Units(Labelled(), Discrete.linear(), prediction_type)
    how: dict[str, Any] = {"updates": 1, "batch": 4, "learning_rate": 1e-30}
    student = progdist.distill(teacher, 5 * torch.randn(16, 2), [4, 2], **how)
    assert type(student) is Units
    if prediction_type == "x":
        z, t = torch.randn(3, 2), torch.tensor(0.5)
        torch.testing.assert_close(student(z, t), teacher(z, t))


@pytest.mark.parametrize(("clip", "level"), [(True, 1.0), (2, 2.0), (False, 3.0), (5.0, 3.0)])
def test_clipped_predictions_are_what_students_learn(clip: float, level: float) -> None:
    """A teacher that says 3 everywhere."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.tensor(3.0))

        def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
            return self.level.expand_as(z)

    teacher, how = Denoiser(Three(), Cosine(), "x"), {"updates": 60, "batch": 16, "learning_rate": 0.2}
    student = progdist.distill(teacher, torch.randn(64, 2), [4, 2], clip=clip, **how)
    assert abs(float(student.network.get_parameter("level").detach()) - level) < 0.1
    assert float(teacher.network.get_parameter("level").detach()) == 3


def test_times_that_a_network_does_not_know_are_refused_at_once() -> None:
    teacher, x = Denoiser(Labelled(), Discrete.linear(), "v"), torch.randn(16, 2)
    with pytest.raises(UserError, match=r"starts with 2048 steps, .* at timestep -0.51, .* 0 to 999: start with 1000"):
        progdist.distill(teacher, x, [2048, 1024], updates=1)
    short = Denoiser(Labelled(), Discrete.linear(num_train_timesteps=100), "v")
    with pytest.raises(UserError, match="starts with 512 steps"):
        progdist.distill(short, x, updates=1)


class InTable(nn.Module):
    """Its time is an `nn.Embedding`."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 2)

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        self.asked = timestep
        return z + self.table(timestep)


@pytest.mark.parametrize("prediction_type", ["v", "eps"])
def test_a_network_whose_time_is_a_table_is_asked_for_its_entries_alone(prediction_type: str) -> None:
    """In stage 0, too, on the teacher's own schedule; a chain between them is refused before any training."""
    teacher, how = Denoiser(InTable(), Discrete.linear(), prediction_type), {"updates": 2, "batch": 8}
    student = progdist.distill(teacher, torch.randn(16, 2), [100, 20], **how)
    assert student.schedule == teacher.schedule
    assert progdist.sample(student, torch.randn(3, 2), 20).isfinite().all()
    seen: list[int] = []
    with pytest.raises(UserError, match=r"table of 1000, but was called at 14.625, between two entries"):
        progdist.distill(teacher, torch.randn(16, 2), [64, 16], observe=lambda steps, _: seen.append(steps), **how)
    assert not seen


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": None}, "method None is unknown"),
        ({"updates": "20"}, "updates is '20', expected a whole number"),
        ({"updates": 2.5}, "updates is 2.5, expected a whole number"),
        ({"updates": 10**400}, r"expected less than 2\^53"),
        ({"learning_rate": 10**400}, r"expected less than 2\^53"),
        ({"updates": {2: 1}}, "updates is {2: 1}, expected a whole number"),
        ({"batch": True}, "batch is True"),
        ({"stages": [4]}, r"stages is \[4\], expected a dictionary by step count"),
        ({"stages": {2: 3}}, "stages has 3 for 2 steps"),
        ({"chain": [4.0, 2.0]}, "chain has 4.0, expected whole numbers"),
        ({"chain": "42"}, "chain is '42', expected step counts in a list"),
        ({"chain": 4}, "chain is '4'"),
        ({"guidance": True, "label": "y", "null_class": 0}, "guidance is True"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3', expected a number"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": None}, "seed is None"),
        ({"batch": 0}, "batch is 0"),
        ({"observe": 3}, "observe is a int"),
        ({"label": 3}, "label is 3"),
        ({"stop": 3}, "stop is 3, expected an EarlyStopping"),
        ({"config": {}}, "config is {}, expected a TrainConfig"),
        ({"conversion": 3}, "conversion is 3"),
        ({"clip": "a"}, "clip is 'a'"),
        ({"clip": -1}, "clip is -1"),
        ({"compile": "no"}, "compile is 'no', expected True or False"),
        ({"weighting": 3}, "weighting 3 is unknown"),
        ({"zero_terminal_snr": 3}, "zero_terminal_snr is 3"),
        ({"null_class": "a"}, "null_class is 'a'"),
        ({"optimizer": None}, "optimizer None is unknown"),
    ],
)
def test_an_argument_of_another_type_is_named(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        progdist.distill(exact_teacher(), torch.randn(4, 2), **{"chain": [4, 2], **how})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["student-0004", None, 3, Clipped(exact_teacher(), 1.0)])
def test_what_is_no_denoiser_is_no_teacher(given: Any) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=r"expected a progdist.Denoiser, got a"):
        progdist.distill(given, torch.randn(4, 2), [4, 2])
