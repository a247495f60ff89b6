"""Each study on a tiny recipe: what it measures, that it goes on, and the mathematics within it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SilentCallback, call, name
from progdist import Cosine, RectifiedFlow
from progdist.diffusion.sampler import network_evaluations
from progdist.diffusion.schedule import Schedule
from progdist.recipes.files import read_recipe
from progdist.runs.run import open_run
from progdist.runs.studies.budget import _variant
from progdist.runs.studies.integrators import mixture_errors, order, steps_within

pytestmark = pytest.mark.slow


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def quick(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with one feature space and fewer samples."""
    path = tmp_path_factory.mktemp("quick") / "quick.yaml"
    path.write_text(
        tiny_recipe.read_text().replace("samples: 96, features: [digits, pixels]", "samples: 32, features: [digits]")
    )
    return path


@pytest.fixture(scope="module")
def finished(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "quick"
    assert call("run", quick, "--out", out).exit_code == 0
    return out


def test_the_ablation_is_the_papers_grid(quick: Path, tmp_path: Path) -> None:
    command = ("ablation", quick, "--seeds", 2, "--out", tmp_path, "--set", "teacher.updates=2")
    first = call(*command)
    assert first.exit_code == 0, first.output
    records = results(tmp_path)
    assert len({(r["output"], r["weighting"], r["seed"]) for r in records}) == len(records) == 4 * 3 * 2
    assert all(record["ancestral"] > 0 and record["ddim"] > 0 for record in records)
    assert (tmp_path / "table.md").read_text().count("±") == 2 * 12
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert call(*command).exit_code == 0
    assert results(tmp_path) == records


def test_the_ablation_changes_what_it_says(quick: Path, tmp_path: Path) -> None:
    """The folder of each cell holds the recipe with that output, weighting and seed, and all else as it was."""
    assert call("ablation", quick, "--seeds", 1, "--out", tmp_path, "--set", "teacher.updates=1").exit_code == 0
    base = read_recipe(str(quick), ["teacher.updates=1"])
    cell = read_recipe(str(tmp_path / "teachers" / "x_eps-snr-0" / "recipe.yaml"))
    teacher = base.teacher.model_copy(update={"weighting": "snr"})
    assert cell == base.model_copy(update={"parameterization": "x_eps", "teacher": teacher})


def test_what_diverges_is_a_result(quick: Path, tmp_path: Path) -> None:
    result = call("ablation", quick, "--seeds", 1, "--out", tmp_path, "--set", "teacher.learning_rate=1e30")
    assert result.exit_code == 0, result.output
    assert all("not" in record["diverged"] for record in results(tmp_path))
    assert "1 of 1 diverged" in (tmp_path / "table.md").read_text()


def test_a_budget_multiplies_every_stage(quick: Path) -> None:
    recipe = read_recipe(str(quick), ["distill.start=16", "distill.stages.1.updates=30"])
    changed = _variant(recipe, 4, 0.5)
    assert changed.distill.counts() == [16, 4, 1]
    assert [changed.distill.plan(link).updates for link in changed.distill.links()] == [2, 15]  # 0.5 * (3, 30), even
    assert [link.substeps for link in changed.distill.links()] == [4, 4]
    assert changed.teacher == recipe.teacher


def test_the_budget_study(quick: Path, tmp_path: Path) -> None:
    words = ("budget", quick, "--out", tmp_path, "--set", "distill.start=4", "--times", 1, "--times", 2)
    result = call(*words)
    assert result.exit_code == 0, result.output
    records = results(tmp_path)
    by_two = [r for r in records if r["divisor"] == 2 and r["factor"] == 2]
    assert [(r["steps"], r["updates"]) for r in by_two] == [(2, 6), (1, 12)]
    by_four = [r for r in records if r["divisor"] == 4 and r["factor"] == 1]
    assert [(r["steps"], r["updates"]) for r in by_four] == [(1, 3)]
    assert (tmp_path / "plot.png").is_file()
    teachers = {path.read_bytes() for path in tmp_path.rglob("teacher/unet/diffusion_pytorch_model.safetensors")}
    assert len(teachers) == 1


def test_a_budget_that_no_chain_fits(quick: Path, tmp_path: Path) -> None:
    result = call("budget", quick, "--out", tmp_path / "b", "--divide-by", 3)
    assert result.exit_code == 2
    assert "dividing 8 steps by 3" in result.stderr
    assert not (tmp_path / "b").exists()


def test_stochastic_sampling_of_a_run(finished: Path) -> None:
    result = call("stochastic", finished, "--levels", 3, "--most", 4)
    assert result.exit_code == 0, result.output
    records = results(finished / "stochastic")
    levels = [r["level"] for r in records if (r["model"], r["steps"], r["method"]) == ("distilled", 2, "ancestral")]
    assert levels == [0.0, 0.5, 1.0]
    evaluations = [json.loads(line) for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    for record in records:
        if record["method"] == "ddim":  # the same noise as the run's own measurement
            kind = {"undistilled": "teacher", "distilled": "student"}[record["model"]]
            same = next(e for e in evaluations if (e["model"], e["steps"]) == (kind, record["steps"]))
            assert record["frechet"] == pytest.approx(same["quality"][0]["frechet"], rel=1e-6)
    assert len({r["frechet"] for r in records if r["steps"] == 4 and r["model"] == "undistilled"}) == 5


def test_stochastic_needs_a_finished_run(tmp_path: Path) -> None:
    result = call("stochastic", tmp_path)
    assert result.exit_code == 2
    assert "holds no finished run" in result.stderr


ORDERS = {"ddim": 1, "euler": 1, "euler_log_snr": 1, "heun": 2, "rk4": 4}


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=name)
def test_measured_orders_on_the_mixture(schedule: Schedule) -> None:
    found = {method: order(errors) for method, errors in mixture_errors(schedule).items()}
    assert found == pytest.approx(ORDERS, abs=0.15)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("budget", [1, 4, 8, 33])
def test_steps_within_a_budget(method: str, budget: int) -> None:
    steps = steps_within(budget, method)
    assert network_evaluations(steps, method) <= budget < network_evaluations(steps + 1, method)


def test_the_integrators_study(finished: Path, tmp_path: Path) -> None:
    words = ("integrators", finished / "teacher", "-n", 16, "--evaluations", 4, "--evaluations", 9, "--out", tmp_path)
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert {(r["method"], r["evaluations"]) for r in results(tmp_path)} >= {("rk4", 1), ("rk4", 9), ("heun", 3)}
    table = (tmp_path / "table.md").read_text()
    assert table.count("| rk4 |") == 2
    assert call(*words[:-1], tmp_path / "b", "--evaluations", 0).exit_code == 2


def test_a_dry_run_foretells_and_writes_nothing(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("run", quick, "--dry-run")
    assert result.exit_code == 0, result.output
    network = open_run(read_recipe(str(quick)), tmp_path / "r", SilentCallback()).stages.untrained().denoiser.network
    assert f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters" in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_data_where_the_recipe_says_enough(tmp_path: Path, quick: Path) -> None:
    stated = ("data.size=16", "data.channels=3", "data.classes=7", "network.class_conditional=true")
    words = [word for setting in (*stated, "data.source=folder:/not/there") for word in ("--set", setting)]
    result = call("run", quick, "--dry-run", *words)
    assert result.exit_code == 0, result.output
    assert "3x16x16, 7 classes" in result.output
    result = call("run", quick, "--dry-run", "--set", "data.source=folder:/not/there")
    assert result.exit_code == 2
    assert "is no folder" in result.stderr


def test_the_estimates_arithmetic(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With known rates the hours are U (B (k f + g) + o), and evaluations are counted stage by stage."""
    from progdist.runs import estimate as module

    rates: Callable[..., module.Rates] = lambda *rest: module.Rates(0.5, 2.0, 0.25, 1000)  # noqa: E731
    monkeypatch.setattr(module, "measure", rates)
    found = module.estimate(read_recipe(str(quick), ["distill.chain=[8,2,1]", "distill.stages.1.updates=5"]))
    teacher, first, last, evaluation = found.parts
    assert (teacher.name, teacher.frozen_evaluations, teacher.trained_evaluations) == ("teacher", 0, 12 * 8)
    assert teacher.hours == pytest.approx(12 * (8 * 2.0 + 0.25) / 3600)
    assert (first.name, first.frozen_evaluations, first.trained_evaluations) == ("student-0002", 4 * 3 * 8, 3 * 8)
    assert first.hours == pytest.approx(3 * (8 * (4 * 0.5 + 2.0) + 0.25) / 3600)
    assert last.frozen_evaluations == 2 * 5 * 8
    assert evaluation.frozen_evaluations == 32 * (8 + 2 + 2 + 1 + 1)
    assert found.memory == 5 * 4 * found.parameters + 8 * 1000


def test_saved_bytes_are_those_of_autograd() -> None:
    """y = sum((x W)^2): autograd keeps x and x W, and W is a weight that is there anyway."""
    from progdist.runs.estimate import _saved_bytes

    network = torch.nn.Linear(3, 5, bias=False)
    x = torch.randn(7, 3)
    assert _saved_bytes(lambda: (network(x) ** 2).sum(), network) == 4 * (7 * 3 + 7 * 5)


def test_integrators_leave_out_what_cannot_begin(finished: Path, tmp_path: Path) -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    import progdist

    network: Any = UNet2DModel.from_pretrained(finished / "teacher", subfolder="unet")
    flow = progdist.Denoiser(network, progdist.RectifiedFlow(), progdist.PARAMETERIZATIONS["velocity"], timesteps=1000)
    progdist.save(flow, tmp_path / "flow")
    result = call("integrators", tmp_path / "flow", "-n", 16, "--evaluations", 4, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "euler_log_snr is left out" in result.output
    methods = {json.loads(line)["method"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()}
    assert methods == {"ddim", "euler", "heun", "rk4"}
