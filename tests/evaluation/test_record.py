"""Evaluation records: what is written is read, and what is damaged is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from progdist import UserError
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.record import EvaluationRecord
from progdist.runs.folder import RunFolder
from support.records import evaluation, quality

WHOLE = evaluation(
    "student", 4, quality=(quality(metrics={"recall": Estimate(0.5, 0.4, 0.6)}), quality(kernel=None, frechet=3)),
    training={"updates": 5}, captions=("a cat",), guidance=2.0, guidance_grids=(1.0, 2.0),
    clip_score=Estimate(20.0, 19.0, 21.0),
)  # fmt: skip


@pytest.mark.parametrize("record", [WHOLE, evaluation("teacher", 8, rmse=None)])
def test_what_is_written_is_read(record: EvaluationRecord) -> None:
    content = json.loads(json.dumps(record.to_json()))
    assert EvaluationRecord.from_json(content) == record
    assert ("guidance" in content) == ("captions" in content) == ("clip_score" in content) == (record is WHOLE)


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": "4"}, {"steps": 4.5}, {"quality": 3}, {"quality": [3]}, {"quality": [{"features": "pixels"}]},
        {"rmse": []}, {"captions": 1}, {"training": "abc"}, {"clip_score": {"value": 1}}, {"model": None},
    ],
)  # fmt: skip
def test_a_damaged_line_is_one_line_of_advice(damage: dict[str, Any], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append("evaluations", WHOLE.to_json())
    assert folder.evaluations() == [WHOLE]
    folder.append("evaluations", WHOLE.to_json() | damage)
    with pytest.raises(UserError, match=r"holds damaged records \(.*\): restore its \.jsonl files$"):
        folder.evaluations()
    folder = RunFolder(tmp_path / "b")
    folder.root.mkdir()
    for line, message in (
        ("[]", "holds damaged records"),
        ('{"format_version": 1, "model": "teacher"}', "holds damaged records"),
        ('{"model": "teacher"}', "format_version is 'None', expected a whole number: restore the file"),
    ):
        (folder.root / "evaluations.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            folder.evaluations()
