"""Tracking: what TensorBoard reads is what the run recorded, and a run that goes on continues it."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from progdist.recipes.files import read_recipe
from progdist.runs.tracking import updates_of
from support.commands import call, read_records, refused, succeeds

TRACKED = ("--set", "tracking=tensorboard")


def events(out: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(out / "tracking" / "tiny"))
    accumulator.Reload()
    return accumulator


@pytest.mark.slow
def test_tensorboard_shows_what_the_run_recorded(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    succeeds("run", tiny_recipe, "--out", out, *TRACKED)
    shown, updates = events(out), updates_of(read_recipe(str(tiny_recipe)))
    assert updates == {
        "teacher": range(12),
        "student-0004": range(12, 15),
        "student-0002": range(15, 18),
        "student-0001": range(18, 21),
    }
    for record in read_records(out, "metrics"):
        scalars = {each.step: each.value for each in shown.Scalars(f"train/{record['model']}/loss")}
        assert scalars[updates[record["model"]].start + record["update"]] == pytest.approx(record["loss"], rel=1e-6)
    for record in read_records(out, "evaluations"):
        curve = {each.step: each.value for each in shown.Scalars(f"evaluation/{record['model']}/frechet_digits")}
        assert curve[record["steps"]] == pytest.approx(record["quality"][0]["frechet"], rel=1e-6)
        (image,) = (each for each in shown.Images(f"samples/{record['model']}") if each.step == record["steps"])
        assert (image.width, image.height) == (71, 71)


@pytest.mark.slow
def test_a_run_that_goes_on_continues_its_record(tiny_recipe: Path, tmp_path: Path) -> None:
    """Tracking may begin later, and each session adds what it makes."""
    out = tmp_path / "run"
    succeeds("run", tiny_recipe, "--out", out, "--set", "distill.chain=[8,4,2]")
    assert not (out / "tracking").exists()
    (out / "student-0002").rename(tmp_path / "moved")
    (out / "evaluations.jsonl").write_text(
        "".join(
            line + "\n" for line in (out / "evaluations.jsonl").read_text().splitlines() if '"steps": 2,' not in line
        )
    )
    succeeds("run", tiny_recipe, "--out", out, "--set", "distill.chain=[8,4,2]", *TRACKED)
    tags = events(out).Tags()
    assert "train/student-0002/loss" in tags["scalars"]
    assert not any(tag.startswith("train/teacher") for tag in tags["scalars"])
    assert set(tags["images"]) == {"samples/student", "samples/teacher"}


def test_a_tracker_that_is_not_there_is_one_line(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist.runs.tracking.is_wandb_available", lambda: False)
    result = call("run", tiny_recipe, "--out", tmp_path / "run", "--set", "tracking=wandb")
    refused(result, "needs the extra `wandb`: pip install 'progdist[wandb]'")
    assert not (tmp_path / "run").exists()
    refused(call("run", tiny_recipe, "--set", "tracking=tensorbord"), "tensorboard")


@pytest.mark.slow
def test_wandb_keeps_one_identity_offline(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    for chain in ("[8,4]", "[8,4]"):
        succeeds("run", tiny_recipe, "--out", out, "--set", f"distill.chain={chain}", "--set", "tracking=wandb")
        (out / "evaluations.jsonl").write_text("")  # measured again, in a second session
        wandb.finish()
    identity = (out / "tracking" / "run_id").read_text()
    sessions = list((out / "tracking" / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(sessions) == 2
