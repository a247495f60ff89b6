"""The commands of docs/own-model.md, in their order and in one folder; training is made shorter.

The teacher is tried once, by the doctor on few images, and trusted afterwards.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from support.commands import SHORT_EVALUATION, succeeds
from support.paths import ROOT

pytestmark = pytest.mark.slow

SHORTER = {
    "distill": ("--set", "conversion.updates=2", "--updates", 2, "--set", "teacher.trust=true", *SHORT_EVALUATION),
    "export": ("--steps", 1),
}


def test_the_way_from_a_folder_to_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "own-model.md").read_text()
    section = text.split("## In three minutes", 1)[1].split("\n## ", 1)[0]
    commands = [shlex.split(line) for line in re.findall(r"^    (\S.*)$", section, re.MULTILINE)]
    assert [command[:2] for command in commands] == [
        ["python", "examples/train_stock_teacher.py"],
        ["progdist", "doctor"],
        ["progdist", "distill"],
        ["progdist", "sample"],
        ["progdist", "export"],
    ]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("progdist.teachers.check.IMAGES", 64)
    monkeypatch.setattr(sys, "argv", commands[0][1:])
    runpy.run_path(commands[0][1], run_name="__main__")
    output = {}
    for _, name, *arguments in commands[1:]:
        output[name] = " ".join(succeeds(name, *arguments, *SHORTER.get(name, ())).output.split())
    assert "its configuration agrees with the data" in output["doctor"]
    assert "Next: progdist play runs/four, or progdist sample runs/four/student-0004" in output["distill"]
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert (tmp_path / "student.onnx").stat().st_size > 1000
