"""Options that have no effect are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

import progdist
from progdist import Denoiser, UserError
from progdist.students.onnx import export_onnx
from progdist.teachers.own import load
from support.commands import call, refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("doctor", "m", "--seed", 0), "--seed requires --data"),
        (("doctor", "m", "--image-column", "a"), "--image-column requires --data"),
        (("doctor", "m", "--caption-column", "a"), "--caption-column requires --data"),
        (("evaluate", "m", "--teacher-steps", 4, "--data", "digits"), "--teacher-steps requires --teacher"),
        (("evaluate", "m", "--reference", "a.npz", "--image-column", "a"), "require --data"),
        (
            ("statistics", "digits", "--out", "a.npz", "--image-column", "a"),
            "image_column and caption_column",
        ),
        (("run", "digits", "--device-memory", 4), "--device-memory requires --dry-run"),
        (("run", "digits", "--set", "data.resample=bilinear"), "data.resample requires data.size"),
        (("run", "digits", "--shard", "--dry-run"), "sharding requires several processes"),
    ],
)
def test_on_the_command_line(words: tuple[object, ...], message: str) -> None:
    refused(call(*words), message)


def test_from_python(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="null_class applies only to a network with classes"):
        progdist.save(tiny_model(), tmp_path / "m", null_class=0)
    assert list(tmp_path.iterdir()) == []
    progdist.save(tiny_model(classes=3), tmp_path / "m", null_class=2)


@pytest.mark.parametrize("name", ["a.txt", "a", "a.onnx.gz", "there.onnx"])
def test_what_is_no_onnx_file_is_refused_before_hours(
    tiny_model: Callable[..., Denoiser], tmp_path: Path, name: str
) -> None:
    (tmp_path / "there.onnx").mkdir()
    progdist.save(tiny_model(), tmp_path / "m")
    with pytest.raises(UserError, match=r"expected a file that ends in \.onnx"):
        export_onnx(load(tmp_path / "m"), 2, tmp_path / name)
