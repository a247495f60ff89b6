"""The cost estimate: its arithmetic, and what a dry run prints."""

from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.recipes.files import read_recipe, validated
from progdist.runs.estimate import estimate
from progdist.runs.stages import untrained
from support.commands import call
from support.stock import SaveStock


@pytest.mark.slow
def test_a_dry_run_estimates_and_writes_nothing(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("run", tiny_recipe, "--dry-run")
    assert result.exit_code == 0, result.output
    network = untrained(read_recipe(str(tiny_recipe)), (1, 8, 8), (), "digits").denoiser.network
    assert f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters" in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("known_rates")
def test_a_dry_run_needs_no_data_where_the_recipe_says_enough(tmp_path: Path, tiny_recipe: Path) -> None:
    stated = ("data.size=16", "data.channels=3", "data.classes=7", "network.class_conditional=true")
    arguments = [word for setting in (*stated, "data.source=folder:/not/there") for word in ("--set", setting)]
    result = call("run", tiny_recipe, "--dry-run", *arguments)
    assert result.exit_code == 0, result.output
    assert "3x16x16, 7 classes" in result.output
    result = call("run", tiny_recipe, "--dry-run", "--set", "data.source=folder:/not/there")
    assert result.exit_code == 2
    assert "is no folder" in result.stderr


@pytest.mark.usefixtures("known_rates")
def test_the_estimates_arithmetic(tiny_recipe: Path) -> None:
    """With known rates the hours are U (B (k f + g) + o), and evaluations are counted stage by stage."""
    found = estimate(read_recipe(str(tiny_recipe), ["distill.chain=[8,2,1]", "distill.stages.1.updates=5"]))
    teacher, first, last, evaluation = found.parts
    assert (teacher.name, teacher.frozen_evaluations, teacher.trained_evaluations) == ("teacher", 0, 12 * 8)
    assert teacher.hours == pytest.approx(12 * (8 * 2.0 + 0.25) / 3600)
    assert (first.name, first.frozen_evaluations, first.trained_evaluations) == ("student-0002", 4 * 3 * 8, 3 * 8)
    assert first.hours == pytest.approx(3 * (8 * (4 * 0.5 + 2.0) + 0.25) / 3600)
    assert last.frozen_evaluations == 2 * 5 * 8
    assert evaluation.frozen_evaluations == 96 * (8 + 2 + 2 + 1 + 1)
    assert found.memory == 5 * 4 * found.parameters + 8 * 1000


@pytest.mark.usefixtures("known_rates")
def test_a_self_taught_target_takes_two_evaluations_and_an_average(tiny_recipe: Path) -> None:
    settings = ["distill.chain=[8,1]", "distill.target=tract", "distill.ema=0.5"]
    found = estimate(read_recipe(str(tiny_recipe), settings))
    assert found.parts[1].frozen_evaluations == 2 * 3 * 8
    assert found.memory == 6 * 4 * found.parameters + 8 * 1000


def test_saved_bytes_are_those_of_autograd() -> None:
    """y = sum((x W)^2): autograd keeps x and x W, and W is a weight that is there anyway."""
    from progdist.runs.estimate import _saved_bytes

    network = torch.nn.Linear(3, 5, bias=False)
    x = torch.randn(7, 3)
    assert _saved_bytes(lambda: (network(x) ** 2).sum(), network) == 4 * (7 * 3 + 7 * 5)


@pytest.mark.parametrize("teacher", ["flow", "eps", "guided"])
@pytest.mark.usefixtures("known_rates")
def test_the_estimate_counts_stage_0_as_it_is(stock: SaveStock, tmp_path: Path, teacher: str) -> None:
    """No updates where there is no stage 0, two evaluations of the teacher where it is guided."""
    folder = stock(FlowMatchEulerDiscreteScheduler() if teacher == "flow" else None, classes=11)
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(folder)}}
    settings = ("match={updates: 5, batch: 4}", "distill={chain: [8, 4], updates: 3, batch: 4}", "evaluate.samples=10")
    recipe = validated(content, (*settings, *(("conversion.guidance=2",) if teacher == "guided" else ())), "test")
    parts = {part.name: part for part in estimate(recipe).parts}
    assert parts["teacher"].updates == (0 if teacher == "flow" else 5)
    assert parts["teacher"].frozen_evaluations == {"flow": 0, "eps": 20, "guided": 40}[teacher]
    assert parts["evaluation"].frozen_evaluations == 10 * (8 + 4 + 4 + 4 + {"flow": 8, "eps": 8, "guided": 16}[teacher])


def test_the_doctor_leaves_the_teacher_as_it_is(stock: SaveStock) -> None:
    """Its trial of the cost trains a copy."""
    from progdist.cli.doctor import TRIAL
    from progdist.runs.estimate import measure

    denoiser = read_teacher(str(stock())).model.denoiser
    before = [parameter.clone() for parameter in denoiser.parameters()]
    measure(denoiser, (1, 8, 8), 2, TRIAL)
    assert all(torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in denoiser.parameters())
