"""`progdist distill --from`: one more stage for a finished student."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from progdist import Cosine, Denoiser, UserError, distill
from progdist.recipes.recipe import Recipe
from progdist.teachers.own import load
from support.commands import call, read_records, refused, succeeds

SHORT = (
    *("--updates", "2", "--batch", "8", "--set", "evaluate.samples=32", "--set", "evaluate.resamples=2"),
    *("--set", "evaluate.features=[pixels]", "--set", "distill.precision=float32"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tiny students."""
    folder = tmp_path_factory.mktemp("from")
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        "name: tiny\ndata: {source: digits}\nnetwork: {width: 8, multipliers: [1], groups: 4}\n"
        "teacher: {updates: 2, batch: 8}\ndistill: {chain: [4, 2, 1], updates: 2, batch: 8}\n"
        "evaluate: {samples: 32, features: [pixels], resamples: 2}\n"
    )
    succeeds("run", recipe, "--out", folder / "run")
    return folder / "run"


def test_a_finished_student_learns_on(run: Path, tmp_path: Path) -> None:
    """It begins with its own weights, its teacher is the one beside it, and all parts of its loss are kept."""
    out = tmp_path / "more"
    told = succeeds("distill", "--from", run / "student-0001", "--data", "digits", "--method", "adversarial",
                    "--set", "distill.learning_rate=1e-9", "--out", out, *SHORT)  # fmt: skip
    assert "student-0002: a progdist model" in told.output.replace("\n", "")
    before, after = load(run / "student-0001"), load(out / "student-0001")
    assert after.method == "adversarial"
    assert tuple(after.lineage) == (4, 2)
    for old, new in zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)
    losses = [record["losses"] for record in read_records(out, "metrics") if "losses" in record]
    assert len(losses) == 2
    assert all(each.keys() == {"regression", "adversarial", "discriminator"} for each in losses)
    page = (out / "report.html").read_text()
    assert "discriminator loss of each model" in page
    assert "regression of each model" in page
    assert json.loads((out / "student-0001" / "progdist.json").read_text())["method"] == "adversarial"


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    student = run / "student-0001"
    refused(call("distill", "--data", "digits"), "expected a teacher's MODEL, or a student to start from: --from")
    for option in ("--steps", "--start"):
        refused(
            call("distill", "--from", student, "--data", "digits", option, "2"), f"{option} has no effect with --from"
        )
    refused(call("distill", "--from", run / "teacher", "--data", "digits"), "is not a student of one step count")
    alone = tmp_path / "student-0001"
    shutil.copytree(student, alone)
    refused(call("distill", "--from", alone, "--data", "digits", "--out", tmp_path / "o", *SHORT), "student-0002")
    refused(
        call("distill", "--from", student, "--data", "digits", "--method", "magic", "--out", tmp_path / "o", *SHORT),
        "'magic' is unknown: use one of progressive, balanced, adversarial",
    )


def test_what_is_finished_keeps_its_options() -> None:
    """A run goes on with other options for students that are not trained yet, and for no others."""
    tiny: dict[str, Any] = {
        "name": "tiny",
        "data": {"source": "digits"},
        "network": {"width": 8, "multipliers": [1]},
        "teacher": {"updates": 2},
        "distill": {"chain": [4, 2, 1], "method": "adversarial", "stages": {1: {"options": {"weight": 0.5}}}},
    }
    old = Recipe.model_validate(tiny)
    other = {**tiny, "distill": {**tiny["distill"], "stages": {1: {"options": {"weight": 2.0}}}}}
    changed = Recipe.model_validate(other)
    assert changed.continues(old, ["teacher", "student-0002"])
    assert not changed.continues(old, ["teacher", "student-0002", "student-0001"])
    everywhere = Recipe.model_validate({**tiny, "distill": {**tiny["distill"], "options": {"r1": 0.5}}})
    assert everywhere.continues(old, ["teacher"])
    assert not everywhere.continues(old, ["teacher", "student-0002"])
    with pytest.raises(ValueError, match=r"distill\.initial requires teacher\.model"):
        Recipe.model_validate({**tiny, "distill": {"chain": [2, 1], "initial": "student-0001"}})


def test_a_student_of_another_network_is_refused() -> None:
    def model(width: int) -> Denoiser:
        layers = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 2))
        return Denoiser(layers, Cosine(), "v", call=lambda network, z, timestep: network(z))

    data = torch.randn(16, 2)
    with pytest.raises(UserError, match="another network than the teacher"):
        distill(model(4), data, [2, 1], initial=model(5), updates=1, batch=4)
    with pytest.raises(UserError, match="applies only to a single stage, and the chain has 2"):
        distill(model(4), data, [4, 2, 1], initial=model(4), updates=1, batch=4)
    student = model(4)
    made = distill(
        model(4), data, [2, 1], initial=student, updates=1, batch=4, learning_rate=1e-12, precision="float32"
    )
    for old, new in zip(student.parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)
