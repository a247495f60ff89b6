"""The commands of the toy in docs/text-models.md, in their order and in one folder; training is made shorter."""

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
    "examples/train_text_teacher.py": ["--updates", "2", "--autoencoder-updates", "2", "--images", "100"],
    "benchmarks/text_teacher.py": ["-n", "8"],
}


def test_from_captioned_digits_to_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "docs" / "text-models.md").read_text().split("## The toy", 1)[1].split("\n## ", 1)[0]
    section = section.replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^    ((?:python|progdist) .*)$", section, re.MULTILINE)]
    programs = [command[1] for command in commands]
    judged_twice = [
        "distill",
        "benchmarks/text_teacher.py",
    ] * 2  # one of a guidance range, then one of LoRA
    assert programs == ["examples/train_text_teacher.py", *judged_twice]
    for folder in ("examples", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if command[0] == "progdist":
            short = ("--updates", 1, "--conversion-updates", 2, "--start", 8, *SHORT_EVALUATION)
            assert "distinct captions are encoded once" in succeeds(*command[1:], *short).output
            continue
        monkeypatch.setattr(sys, "argv", [*command[1:], *SHORTER[command[1]]])
        runpy.run_path(command[1], run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| runs/")]
    student = next(row for row in rows if "student-0004 | 4 | 3 |" in row)
    teacher = next(row for row in rows if "stock-text | 4 | 3 |" in row)
    assert student.split("|")[7].strip() == "4"  # a row for each step
    assert teacher.split("|")[7].strip() == "8"  # and two where a stock pipeline guides
