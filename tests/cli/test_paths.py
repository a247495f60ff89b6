"""Paths of options: tried as they are, with brackets, spaces and `=`; `~` is home where the shell left it."""

from collections.abc import Callable
from pathlib import Path

import pytest

import progdist
from progdist import Denoiser
from progdist.cli.evaluation import named_files
from progdist.evaluation.compare import candidates
from progdist.recipes.files import read_recipe
from progdist.teachers.open import open_teacher
from support.commands import TINY, size_of, succeeds


def test_paths_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Denoiser]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = "~/my [model]@2*"
    progdist.save(tiny_model(classes=2), model, steps=(2,), classes=("cat", "dog"))
    assert (tmp_path / "my [model]@2*" / "progdist.json").is_file()
    succeeds("sample", model, "-n", 2, "--label", "dog", "--out", "~/a [grid]?.png")
    assert size_of(tmp_path / "a [grid]?.png") == (2 * 65 - 1, 64)
    assert len(open_teacher(model).model.classes) == 2
    assert progdist.load(model).num_train_timesteps == 1024
    assert [(each.folder, each.steps) for each in candidates([model])] == [(tmp_path / "my [model]@2*", None)]
    (tmp_path / "a recipe.yaml").write_text(TINY)
    assert read_recipe("~/a recipe.yaml").name == "tiny"


def test_paths_after_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a=b.npz").touch()
    for word in ("~/a=b.npz", "pixels=~/a=b.npz"):
        assert named_files("--reference", [word], "pixels") == {"pixels": tmp_path / "a=b.npz"}
