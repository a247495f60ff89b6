"""The commands of the toy in docs/results/text-models.md, in order and in one folder; training is made shorter."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from support.commands import SHORT_EVALUATION, succeeds
from support.paths import ROOT

pytestmark = pytest.mark.slow

EXPERIMENTS = "benchmarks/experiments"
TABLE = f"{EXPERIMENTS}/text_teacher.py"

SHORTER = {
    "examples/train_text_teacher.py": ["--updates", "2", "--autoencoder-updates", "2", "--images", "100"],
    TABLE: ["-n", "8"],
}


def test_from_captioned_digits_to_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "docs" / "results" / "text-models.md").read_text().split("## The toy", 1)[1].split("\n## ", 1)[0]
    section = section.replace("\\\n", " ")
    lines = re.findall(r"^    ((?:python|progdist) .*)$", section, re.MULTILINE)
    commands = [shlex.split(line) for line in lines if " ... " not in line]  # such a line repeats one above
    programs = [command[1] for command in commands]
    judged_twice = ["distill", TABLE] * 2  # one of a guidance range, then one of LoRA
    assert programs == ["examples/train_text_teacher.py", *judged_twice]
    for folder in ("examples", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / EXPERIMENTS)  # a script is run from its folder

    def benchmark(*arguments: str) -> list[list[str]]:
        """The rows that a script prints, without their first line of names."""
        monkeypatch.setattr(sys, "argv", list(arguments))
        runpy.run_path(arguments[0], run_name="__main__")
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    rows: list[list[str]] = []
    for command in commands:
        if command[0] == "progdist":
            short = ("--updates", 1, "--set", "conversion.updates=2", "--start", 8, *SHORT_EVALUATION)
            assert "distinct captions are encoded once" in succeeds(*command[1:], *short).output
        else:
            rows += benchmark(*command[1:], *SHORTER[command[1]])
    student = next(row for row in rows if row[:3] == ["runs/text-4/student-0004", "4", "3"])
    teacher = next(row for row in rows if row[:3] == ["runs/stock-text", "4", "3"])
    assert student[6] == "4"  # a row for each step
    assert teacher[6] == "8"  # and two where a stock pipeline guides
    assert any(row[:3] == ["runs/lora-4/student-0004", "4", "1"] for row in rows)
    what, few = ("digits", "captions:runs/digits-captions"), ("-n", "8", "--guidance", "3")
    _, same = benchmark(TABLE, *what, "runs/stock-text@4", *few, "--reference", "runs/stock-text@4")
    assert abs(float(same[4].split()[0])) < 1e-3  # from itself
    assert benchmark(f"{EXPERIMENTS}/exact_stage_0.py", *what, "runs/stock-text", *few, "--steps", "2")[1][0] == "3"
