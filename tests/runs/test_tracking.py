"""Tracking: what TensorBoard reads is what the run recorded, and a run that goes on continues it."""

import os
import struct
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import student_name
from progdist.runs.folder import RunFolder
from progdist.runs.tracking import TrackedCallback, updates_of
from progdist.training.callbacks import Progress
from support.commands import SilentCallback, call, read_records, refused, succeeds
from support.records import evaluation

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
    places = {8: 12, 4: 15, 2: 18, 1: 21}
    for record in read_records(out, "evaluations"):
        place, model = places[record["steps"]], record["model"]
        curve = {each.step: each.value for each in shown.Scalars(f"evaluation/{model}/frechet_digits")}
        assert curve[place] == pytest.approx(record["quality"][0]["frechet"], rel=1e-6)
        (image,) = (each for each in shown.Images(f"samples/{model}") if each.step == place)
        assert (image.width, image.height) == (71, 71)
    pairs = shown.Images("pairs/teacher_and_student")
    assert [(pair.step, pair.width, pair.height) for pair in pairs] == [(place, 145, 71) for place in (15, 18, 21)]


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
    assert set(tags["images"]) == {"samples/student", "samples/teacher", "pairs/teacher_and_student"}


class StepsOnly:
    """A tracker that keeps the steps alone."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)

    def log_images(self, images: dict[str, Any], step: int) -> None:
        self.steps.append(step)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["evaluate.most_steps=4"],
        ["evaluate.most_steps=1"],
        ["evaluate.most_steps=4", "evaluate.teacher_every=2", "evaluate.solver=dpmpp"],
        ["distill.chain=[8,2,1]", "evaluate.most_steps=7", "distill.stages.2.updates=1"],
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_steps_never_fall(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], given: bool
) -> None:
    """In the order of a run: every model trained, then measured; the first measurement is before any student."""
    monkeypatch.setattr("progdist.runs.tracking._pixels", lambda path: np.zeros((1, 1, 3), np.uint8))
    recipe, tracker = read_recipe(str(tiny_recipe), settings), StepsOnly()
    (_, reference), *others = recipe.measurements()
    open_tracker = partial(cast, GeneralTracker, tracker)
    callback = TrackedCallback(SilentCallback(), RunFolder(tmp_path), open_tracker, updates_of(recipe), reference)
    for name, updates in updates_of(recipe).items():
        callback.begin(name, len(updates))
        for update in range(1, len(updates) + 1):
            callback.progress(Progress(update, 0.5, 1.0, 1e-3, seconds=1.0))
        first = [("teacher", reference), ("converted", reference)][: 1 + given]
        for model, steps in first if name == "teacher" else others:
            if name in ("teacher", student_name(steps)):
                callback.evaluated(evaluation(model, steps))
    assert tracker.steps == sorted(tracker.steps)
    assert len(tracker.steps) == sum(map(len, updates_of(recipe).values())) + 2 * (len(others) + 1 + given)


def test_a_tracker_that_is_not_there_is_one_line(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist.runs.tracking.is_wandb_available", lambda: False)
    result = call("run", tiny_recipe, "--out", tmp_path / "run", "--set", "tracking=wandb")
    refused(result, "requires the extra `wandb`: pip install 'progdist[wandb]'")
    assert not (tmp_path / "run").exists()
    refused(call("run", tiny_recipe, "--set", "tracking=tensorbord"), "tensorboard")


def offline_records(session: Path) -> Iterator[Any]:
    """What wandb keeps of an offline session: protobuf messages in a log of LevelDB's format, after seven bytes."""
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    (file,) = session.glob("*.wandb")
    data, at, message = file.read_bytes(), 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:  # no header fits into the rest of a block
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        message, at = message + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record.FromString(message)
            message = b""


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
    losses, images = 0, 0
    for session in sessions:
        for record in offline_records(session):
            items = {item.key or item.nested_key[0] for item in record.history.item}
            losses += "train/teacher/loss" in items
            images += "pairs/teacher_and_student" in items
    assert losses == 12  # of the first session alone, which trained
    assert images >= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_keeps_one_identity_in_files(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions of one run: losses of the first, distances and images of both; the files are all there is."""
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "run"
    for _ in range(2):
        succeeds("run", tiny_recipe, "--out", out, "--set", "distill.chain=[8,4]", "--set", "tracking=mlflow")
        (out / "evaluations.jsonl").write_text("")  # measured again, in a second session
        mlflow.end_run()
    client = mlflow.MlflowClient((out / "tracking" / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'progdist'")
    (session,) = client.search_runs([experiment.experiment_id])
    assert session.info.run_id == (out / "tracking" / "mlflow_run_id").read_text()
    assert session.data.params["seed"] == "0"
    for record in read_records(out, "metrics"):
        name, first = record["model"], updates_of(read_recipe(str(tiny_recipe)))[record["model"]].start
        for key in ("loss", "gradient_norm", "learning_rate"):
            history = {
                each.step: each.value for each in client.get_metric_history(session.info.run_id, f"train/{name}/{key}")
            }
            assert history[first + record["update"]] == pytest.approx(record[key])
    assert len(client.get_metric_history(session.info.run_id, "evaluation/student/frechet_digits")) == 2
    images = [each.path for each in client.list_artifacts(session.info.run_id, "images") if each.path.endswith(".png")]
    assert len([path for path in images if "pairs" in path]) >= 2
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
