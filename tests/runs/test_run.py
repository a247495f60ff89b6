"""The whole job on a tiny recipe through the command line: what it writes, how it continues."""

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from progdist._utils.files import read_tensors
from support.commands import call, read_records, size_of

pytestmark = pytest.mark.slow


def test_a_run_leaves_what_it_promises(finished: tuple[Path, Result]) -> None:
    out, result = finished
    models = [("teacher", 8)] + [(name, steps) for steps in (4, 2, 1) for name in ("student", "teacher")]
    models.insert(2, ("teacher_dpmpp", 4))  # with fewer steps it is DDIM
    assert [(record["model"], record["steps"]) for record in read_records(out, "evaluations")] == models
    for name, steps in models:
        assert size_of(out / "samples" / f"{name}-{steps:04d}.png") == (71, 71)
    assert [record["update"] for record in read_records(out, "metrics")] == [*range(1, 13), *[1, 2, 3] * 3]
    for record in read_records(out, "evaluations"):
        assert record["network_evaluations"] == record["steps"]
        assert record["seconds_per_image"] > 0
        assert {quality["features"] for quality in record["quality"]} == {"digits", "pixels"}
        assert 0 <= record["quality"][0]["agreement"] <= 1
    assert read_records(out, "evaluations")[0]["rmse"] == 0
    told = json.loads((out / "student-0002" / "progdist.json").read_text())
    assert (told["steps"], told["lineage"], told["classes"]) == ([2], [8, 4], list("0123456789"))
    assert told["training"]["updates"] == 3
    assert f"Report: {out / 'report.html'}" in result.stdout
    paths = "running|live report|Report|Next|warning"
    short = [line for line in result.stdout.splitlines() if not re.match(paths, line)]
    assert max(map(len, short)) <= 80


def test_the_students_learn(finished: tuple[Path, Result], tiny_recipe: Path) -> None:
    """Each student starts as its teacher and moves away from it."""
    out, _ = finished
    weights = [
        read_tensors(out / name / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("teacher", "student-0004", "student-0002", "student-0001")
    ]
    for teacher, student in pairwise(weights):
        distance = math.sqrt(sum(float((teacher[key] - student[key]).square().sum()) for key in teacher))
        size = math.sqrt(sum(float(teacher[key].square().sum()) for key in teacher))
        assert 0 < distance / size < 0.2


def test_the_same_command_again_repeats_nothing(finished: tuple[Path, Result], tiny_recipe: Path) -> None:
    out, _ = finished
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("report.html", ".owner")
    }
    assert call("run", tiny_recipe, "--out", out, "--set", "network.class_conditional=true").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("stop", ["teacher 6", "student-0002 3", "evaluate 3"])
def test_an_interrupted_run_continues_to_the_same_end(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    """Stopped within the teacher, within a student, or between evaluations: the same weights, metrics and distances."""
    out, _ = finished
    command = ("run", tiny_recipe, "--out", tmp_path / "run", "--set", "network.class_conditional=true")
    where, count = stop.split()
    seen: dict[str, Any] = {"title": "", "evaluations": 0}

    class Interrupting:
        def __init__(self, console: object) -> None: ...
        def begin(self, title: str, updates: int) -> None:
            seen["title"] = title

        def progress(self, progress: Any) -> None:  # noqa: ANN401
            if seen["title"] == where and progress.update == int(count):
                raise KeyboardInterrupt

        def end(self, stopped: int | None = None) -> None: ...
        def evaluated(self, record: object) -> None:
            seen["evaluations"] += 1
            if where == "evaluate" and seen["evaluations"] == int(count):
                raise KeyboardInterrupt

        def note(self, text: str) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr("progdist.cli.progress.Terminal", Interrupting)
        assert call(*command).exit_code == 130
    assert not (tmp_path / "run" / "student-0001").exists()
    assert call(*command).exit_code == 0
    for name in ("teacher", "student-0004", "student-0002", "student-0001"):
        path = Path(name) / "unet" / "diffusion_pytorch_model.safetensors"
        assert (out / path).read_bytes() == (tmp_path / "run" / path).read_bytes()
    assert (out / "metrics.jsonl").read_text() == (tmp_path / "run" / "metrics.jsonl").read_text()
    ours, theirs = read_records(tmp_path / "run", "evaluations"), read_records(out, "evaluations")
    assert [record["quality"] for record in ours] == [record["quality"] for record in theirs]


def test_a_torn_record_is_made_again(finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "evaluations.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]) + lines[0][:40])
    command = ("run", tiny_recipe, "--out", tmp_path / "run", "--set", "network.class_conditional=true")
    assert call(*command).exit_code == 0
    told = [record for line in path.read_text().splitlines() if line.endswith("}") for record in [json.loads(line)]]
    assert sorted((record["model"], record["steps"]) for record in told) == sorted(
        (record["model"], record["steps"]) for record in map(json.loads, lines)
    )
