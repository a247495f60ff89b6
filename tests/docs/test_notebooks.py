"""The notebooks run, with training made short in their cells tagged `parameters`; what is committed is small."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support.paths import ROOT

NOTEBOOKS = ROOT / "examples" / "notebooks"
LARGEST = 300_000
"""Bytes of a notebook with its pictures."""
TINY = (
    "network.width=8 network.groups=4 teacher.updates=2 distill.chain=[8,4,1] distill.stages={} "
    "distill.updates=2 evaluate.samples=16 evaluate.resamples=2"
)
SHORT = {
    "points": "updates = 2",
    "own_folder": "teacher_updates, conversion_updates, updates, samples, width = 2, 2, 1, 16, 8",
    "judge_run": f'settings = "{" ".join(f"--set {setting}" for setting in TINY.split())}"',
}


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == SHORT.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SHORT[name]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("name", SHORT)
def test_what_is_committed_is_small_and_without_errors(name: str) -> None:
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert bool(outputs) == (name == "points")  # the others show a run, which each machine makes for itself
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
