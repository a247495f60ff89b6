"""`progdist.distill` on vectors and images."""

# pyright: reportArgumentType=false

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError, sample
from progdist.diffusion.parameterization import PARAMETERIZATIONS, V
from progdist.methods import METHODS
from progdist.training.batches import collate
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
    assert len(calls) == 3 * 2 + 2 * 2 * 3  # a student and its teacher: once in stage 0, and twice for two steps
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
    with pytest.raises(UserError, match="no 'labels': remove label='shift'"):
        progdist.distill(exact_teacher(), [(x, {"shift": 1.0}) for x, _ in pairs], [4, 2], label="shift")


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


@pytest.mark.parametrize(("method", "ema"), [("stochastic", 0.0), ("tract", 0.0), ("tract", 0.5)])
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
            r"stages has the key 4, and the students take \[2\] steps",
        ),
        (torch.zeros(4, 2), {"stages": {2: {"updates": 0}}}, "updates is 0, expected at least 1"),
        (
            torch.zeros(4, 2),
            {"stages": {2: {"update": 1}}},
            "training option 'update' is unknown: use one of upd",
        ),
        (torch.zeros(4, 2), {"stages": {2: {"batch": 2}}}, "batch is of all stages"),
        (torch.zeros(4, 2), {"stages": {2: {"ema": 0.5}}}, "ema is of all stages"),
        (torch.zeros(4, 2), {"checkpoint_every": 2}, "checkpoint_every has no effect without a folder"),
        (torch.zeros(4, 2), {"stages": {2: {"checkpoint_every": 2}}}, "checkpoint_every has no effect without"),
        (torch.zeros(4, 2), {"conversion": {"checkpoint_every": 2}}, "checkpoint_every has no effect without"),
        (torch.zeros(4, 2), {"conversion": {"updates": 2}}, "conversion has no effect: this teacher needs no stage 0"),
        (torch.zeros(4, 2), {"guidance": (2.0, 2.0), "label": "shift", "null_class": 0}, "is no range"),
        ([(torch.zeros(2), {"steps": 1})], {}, "steps"),
        (torch.zeros(4, 2), {"clip": 1.0}, "training option 'clip' is unknown: use one of updates, "),
        (torch.zeros(4, 2), {"conversion": {"guidance": 1.0}}, "training option 'guidance' is unknown"),
        (
            torch.zeros(4, 2),
            {"method": "tracts"},
            "'tracts' is unknown: use one of progressive, stochastic, tract",
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
    assert torch.equal(plain.network.table, again.network.table)


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
