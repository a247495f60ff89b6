"""The list of runs says what their records say, without torch, in 80 columns."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from progdist._utils.errors import UserError
from progdist._utils.locks import locked
from progdist.cli.app import app
from progdist.cli.runs import ago
from progdist.runs.folder import RunFolder
from progdist.runs.listing import FAILED, FINISHED, RUNNING, STOPPED, runs_in
from support.commands import succeeds

HOUR = 3600.0


def begun(folder: Path, hours: float, *, state: str | None = None, reason: str = "") -> Path:
    """The folder of a run that wrote its last record some hours ago."""
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", ".owner"):
        (folder / name).touch()
    found = [("teacher", 8, 2.0), ("student", 4, 2.2), ("teacher", 4, 3.0), ("student", 2, 3.0), ("student", 1, 8.0)]
    lines = [json.dumps({"model": m, "steps": s, "quality": [{"frechet": d}]}) for m, s, d in found]
    (folder / "evaluations.jsonl").write_text("\n".join([*lines, '{"model": "stud']))
    metrics = '{"model": "teacher", "update": 5}\n{"model": "student-0004", "update": 7}\n{"mo'
    (folder / "metrics.jsonl").write_text(metrics)
    if state:
        RunFolder(folder).end(state, reason)
    changed = time.time() - hours * HOUR
    for path in folder.iterdir():
        os.utime(path, times=(changed, changed))
    return folder


def test_every_state_is_told(tmp_path: Path) -> None:
    begun(tmp_path / "done", 1, state=FINISHED)
    (begun(tmp_path / "stopped", 30) / "checkpoints" / "student-0004").mkdir(parents=True)
    for update in (400, 1200):
        (tmp_path / "stopped" / "checkpoints" / "student-0004" / f"{update:08d}.json").touch()
    begun(tmp_path / ("a-long-name-" * 4), 100, state=FAILED, reason="7.png cannot be read")
    begun(tmp_path / "running", 0)
    (tmp_path / "no run").mkdir()
    (tmp_path / "no run" / "recipe.yaml").touch()
    with locked(tmp_path / "running"):
        listed = runs_in(tmp_path)
        told = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["runs", str(tmp_path)]).output
    assert [(run.name, run.state, run.place) for run in listed] == [
        ("running", RUNNING, "student-0004 at 7"),
        ("done", FINISHED, ""),
        ("stopped", STOPPED, "student-0004 at 1200"),
        ("a-long-name-" * 4, FAILED, ""),
    ]
    assert listed[0].students == {4: 1.1, 2: 1.5, 1: 4.0}
    assert max(map(len, told.splitlines()[:-1])) <= 80
    for words in ("done", "finished", "1 h ago", "4: 1.10, 2: 1.50,", "30 h ago", "4 days ago", "just now"):
        assert words in told
    assert f"{'a-long-name-' * 4}: 7.png cannot be read\n" in told
    assert told.endswith(f"Next: progdist play {tmp_path}/running\n")
    assert [run.name for run in runs_in(tmp_path / "done")] == ["done"]


def test_how_a_run_ended_is_kept_until_it_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(begun(tmp_path / "run", 0))
    folder.end(FAILED, "a disk is full")
    assert [(run.state, run.reason) for run in runs_in(tmp_path)] == [(FAILED, "a disk is full")]
    folder.begin()
    assert [(run.state, run.reason) for run in runs_in(tmp_path)] == [(STOPPED, "")]
    folder.end(FINISHED)
    folder.begin()
    assert [run.state for run in runs_in(tmp_path)] == [FINISHED]


def test_damaged_records_are_passed_over(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", 0)
    lines = ("[1]", '{"model": "teacher"}', '{"model": "student", "steps": 1, "quality": []}')
    (folder / "evaluations.jsonl").write_text("\n".join(lines))
    (folder / "metrics.jsonl").write_bytes(b"\xff\n")
    (folder / "ended.json").write_text("[")
    (run,) = runs_in(tmp_path)
    assert (run.state, run.place, run.students) == (STOPPED, "", {})


def test_where_there_is_none(tmp_path: Path) -> None:
    assert "no runs in" in succeeds("runs", tmp_path).output
    with pytest.raises(UserError, match="is not a folder: name the folder of runs"):
        runs_in(tmp_path / "missing")
    times = {0: "just now", 59: "just now", 60: "1 min ago", 7200: "2 h ago", 172800: "2 days ago"}
    assert {seconds: ago(seconds) for seconds in times} == times


def test_it_needs_no_torch(tmp_path: Path) -> None:
    for number in range(50):
        begun(tmp_path / f"run-{number}", number)
    script = "import sys; from progdist.cli.app import app\ntry: app(['runs', sys.argv[1]])\nfinally:\n"
    script += "    assert not {'torch', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run-") == 51


def test_a_damaged_record_of_the_end_counts_as_stopped(tmp_path: Path) -> None:
    """And the run starts again: it is replaced, not read."""
    folder = RunFolder(tmp_path)
    folder.end(FAILED, "no space left")
    assert folder.ended() == (FAILED, "no space left")
    (tmp_path / "ended.json").write_bytes(b"\xff{")
    assert folder.ended() == (STOPPED, "")
    folder.begin()
    assert folder.ended() is None
