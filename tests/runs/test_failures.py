"""Full disks, losses that are not finite and images that do not fit stop a run in one line."""

import errno
import math
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from typer.testing import Result

from progdist._utils.files import atomic_write
from progdist.methods import METHODS, PROGRESSIVE
from support.commands import call, refused

pytestmark = pytest.mark.slow


def test_images_of_another_size_are_reported(tiny_recipe: Path, tmp_path: Path) -> None:
    for index, size in enumerate([(8, 8), (8, 8), (9, 9)]):
        Image.new("L", size, index).save(tmp_path / f"{index}.png")
    result = call("run", tiny_recipe, "--out", tmp_path / "run", "--set", f"data.source=folder:{tmp_path}")
    refused(result, "2.png" if "2.png" in result.stderr else "image 2", "set a size")


def test_a_full_disk_loses_nothing(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills while the first student is written: one line, and the run then continues from what is there."""
    command = ("run", tiny_recipe, "--out", tmp_path / "run")

    def full(path: Path, content: bytes) -> None:
        if "student-0004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    write = atomic_write
    with monkeypatch.context() as patch:
        patch.setattr("progdist.training.checkpoint.atomic_write", full)
        refused(call(*command), "No space left on device", "free some space")
    assert (tmp_path / "run" / "teacher" / "progdist.json").is_file()
    teacher = (tmp_path / "run" / "teacher" / "progdist.json").stat().st_mtime_ns
    assert call(*command).exit_code == 0
    assert (tmp_path / "run" / "teacher" / "progdist.json").stat().st_mtime_ns == teacher


def test_weights_that_cannot_be_written_are_reported(tiny_recipe: Path, tmp_path: Path) -> None:
    """The system itself refuses a large file, as it would on a full disk; nothing half written stays."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
        settings = ("--set", "teacher.checkpoint_every=100")
        refused(call("run", tiny_recipe, "--out", tmp_path / "run", *settings), "teacher", "ulimit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in (tmp_path / "run").glob("[!.]*")) == [
        "data.json",
        "data_features",
        "ended.json",
        "metrics.jsonl",
        "recipe.yaml",
        "report.html",
        "samples",
    ]


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage, the update and the last good checkpoint are named; with another learning rate the run continues."""
    command = ["run", tiny_recipe, "--out", tmp_path / "run", "--set", "distill.checkpoint_every=1"]
    count = 0

    def breaking(*arguments: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401
        nonlocal count
        count += 1
        loss = cast(torch.Tensor, PROGRESSIVE.loss(*arguments, **options))
        return loss * math.nan if count == 3 else loss

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "progressive", replace(PROGRESSIVE, loss=breaking))
        result = call(*command, "--set", "distill.max_skipped_updates=0")
    checkpoint = tmp_path / "run" / "checkpoints" / "student-0004" / "00000001.safetensors"
    refused(result, "student-0004: update 3 of 3", "not both finite", str(checkpoint), "distill.stages.4.precision=")
    assert checkpoint.is_file()
    assert not (tmp_path / "run" / "student-0004").exists()
    assert call(*command, "--set", "distill.learning_rate=1.0e-4").exit_code == 0
    assert not (tmp_path / "run" / "checkpoints" / "student-0004").exists()


def test_a_rate_that_blows_the_weights_up_never_becomes_a_model(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = (
        "distill.learning_rate=1e30",
        "distill.max_grad_norm=0",
        "distill.updates=50",
        "distill.checkpoint_every=1",
    )
    arguments = [word for text in settings for word in ("--set", text)]
    refused(call("run", tiny_recipe, "--out", tmp_path / "run", *arguments), "student-0004: update ", "no checkpoint")
    assert not (tmp_path / "run" / "student-0004").exists()


def test_the_remedy_that_is_named_is_taken_after_other_stages_are_finished(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path
) -> None:
    """A stage that fails for memory or for its rate goes on with others of its own."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "student-0001")
    command = ("run", tiny_recipe, "--out", out, "--set", "network.class_conditional=true")
    refused(call(*command, "--set", "distill.learning_rate=1e-4"), "another recipe")
    changes = ("learning_rate=1e-4", "gradient_accumulation_steps=2", "checkpoint_every=1", "max_skipped_updates=3")
    settings = [word for change in changes for word in ("--set", f"distill.stages.1.{change}")]
    assert call(*command, *settings).exit_code == 0
    assert (out / "student-0001").is_dir()
