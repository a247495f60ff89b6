"""docs/metrics.md and docs/results/metrics.md: the tests that they name exist, every space and metric has its row."""

import re
from typing import get_args

import pytest

from progdist._utils.names import Features, Metric
from support.paths import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text()
BOTH = PAGE + (ROOT / "docs" / "results" / "metrics.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(evaluation/[\w/]+\.py)", BOTH))))
def test_files_that_it_names_exist(name: str) -> None:
    assert (ROOT / "tests" / name).is_file()


@pytest.mark.parametrize(("name", "function"), re.findall(r"`(evaluation/[\w/]+\.py)::(\w+)`", BOTH))
def test_tests_that_it_names_exist(name: str, function: str) -> None:
    assert f"\ndef {function}(" in (ROOT / "tests" / name).read_text()


def test_every_space_and_metric_has_its_row() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`([\w-]+)`", " ".join(rows)))
    assert {*get_args(Features), *get_args(Metric), "frechet", "kernel"} <= named
