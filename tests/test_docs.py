"""The commands of docs/own-model.md, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_way_from_a_folder_to_a_student(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "own-model.md").read_text()
    section = text.split("## In three minutes", 1)[1].split("\n## ", 1)[0]
    commands = re.findall(r"^    (\S.*)$", section, re.MULTILINE)
    assert [command.split()[:2] for command in commands] == [
        ["python", "examples/train_stock_teacher.py"],
        ["progdist", "doctor"],
        ["progdist", "distill"],
        ["progdist", "sample"],
        ["progdist", "export"],
    ]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = {}
    for command in commands:
        told = subprocess.run(
            command.split(), cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=3600
        )
        assert told.returncode == 0, f"{command}: {told.stdout}{told.stderr}"
        said[command.split()[1]] = " ".join(told.stdout.split())
    assert "what its folder says agrees with the data" in said["doctor"]
    assert "The student: runs/four/student-0004" in said["distill"]
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert (tmp_path / "student.onnx").stat().st_size > 1000
