"""Chains of step counts."""

import pytest

from progdist import UserError
from progdist.methods.chain import Stage, distill_chain, halvings, stages


def test_chains() -> None:
    assert halvings(256, 4) == [256, 128, 64, 32, 16, 8, 4]
    assert halvings(64, 1, 4) == [64, 16, 4, 1]
    links = stages([1000, 500, 250, 125, 25, 5, 1])
    assert [(link.steps, link.substeps) for link in links] == [(500, 2), (250, 2), (125, 2), (25, 5), (5, 5), (1, 5)]
    for mistake in ([256, 100], [8], [4, 8], [4, 4], [4, 0]):
        with pytest.raises(UserError):
            stages(mistake)
    for start, end, substeps in ((100, 3, 2), (256, 1, 1), (4, 4, 2), (4, 0, 2), (6, 1, 4)):
        with pytest.raises(UserError):
            halvings(start, end, substeps)


def test_a_chain_is_walked_once_each_student_becoming_the_next_teacher() -> None:
    seen: list[tuple[int, int, str]] = []

    def train_student(number: int, stage: Stage, teacher: str) -> str:
        seen.append((number, stage.substeps, teacher))
        return f"student-{stage.steps}"

    found = [(stage.steps, student) for stage, student in distill_chain("teacher", stages([8, 4, 1]), train_student)]
    assert found == [(4, "student-4"), (1, "student-1")]
    assert seen == [(1, 2, "teacher"), (2, 4, "student-4")]
