"""A run's folder is held by one run at a time, and its history is kept."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from progdist._utils.errors import UserError
from progdist._utils.files import FORMAT_VERSION
from progdist.cli.app import app
from progdist.runs.folder import RunFolder


def test_a_file_system_without_locks_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(file: Any, how: int) -> None:  # noqa: ANN401
        raise OSError(errno.ENOLCK, "No locks available")

    notices: list[str] = []
    monkeypatch.setattr("fcntl.flock", nothing)
    with RunFolder(tmp_path / "run").locked(notices.append):
        pass
    assert "cannot be locked (No locks available)" in notices[0]


def test_records_of_a_later_format_are_told_as_such(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append("evaluations", {"steps": 4})
    path = tmp_path / "evaluations.jsonl"
    assert json.loads(path.read_text()) == {"format_version": FORMAT_VERSION, "steps": 4}
    assert list(folder.read("evaluations")) == [{"steps": 4}]
    path.write_text(path.read_text() + '{"format_version": 99}\n')
    with pytest.raises(UserError, match=r"evaluations\.jsonl has format version 99"):
        list(folder.read("evaluations"))


@pytest.mark.slow
def test_fresh_starts_over_and_deletes_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", str(tiny_recipe), "--out", str(tmp_path / "run"), "--set", "distill.end=4"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")}
    assert CliRunner().invoke(app, [*arguments, "--fresh", "--set", "seed=5"]).exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "run.old-1").glob("*.jsonl")} == before
    assert json.loads((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[0])["steps"] == 8
