"""The ONNX file holds the whole sampling loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from progdist import Denoiser, sample
from progdist.cli.app import app
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.models.conditioning import Classes
from progdist.models.model import Model
from progdist.students.folder import save
from progdist.teachers.own import load
from support.commands import call


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5])
def test_onnx_is_the_whole_loop(tiny_model: Callable[..., Denoiser], tmp_path: Path, classes: int) -> None:
    """onnxruntime makes torch's images from the same noise within 1e-4, at batch sizes it was not traced with."""
    runtime = pytest.importorskip("onnxruntime")
    denoiser = tiny_model(classes=classes)
    save(Model(denoiser, (2,), (4,), Classes(tuple(map(str, range(classes))))), tmp_path / "student")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "student"), "--onnx", str(tmp_path / "student.onnx")])
    assert result.exit_code == 0, result.output
    session = runtime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3, 7):
        noise, labels = torch.randn(count, 1, 8, 8), torch.arange(count) % max(classes, 1)
        condition: dict[str, Any] = {"class_labels": labels} if classes else {}
        inputs = {"noise": noise.numpy()} | ({"labels": labels.numpy()} if classes else {})
        (theirs,) = session.run(["images"], inputs)
        np.testing.assert_allclose(
            sample(load(tmp_path / "student").denoiser, noise, 2, **condition), theirs, atol=1e-4
        )


def test_onnx_needs_a_step_count(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    save(Model(tiny_model()), tmp_path / "teacher")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "teacher"), "--onnx", str(tmp_path / "t.onnx")])
    assert result.exit_code == 2
    assert "set steps, e.g. 16" in result.stderr


@pytest.mark.slow
def test_onnx_holds_the_decoder(latent_student: Path, tmp_path: Path) -> None:
    model = load(latent_student)
    assert call("export", latent_student, "--steps", 1, "--onnx", tmp_path / "s.onnx").exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    from progdist.evaluation.generate import sampling_noise

    ours, labels, _ = generate_images(model, SamplingOptions(1, 3, None, 0), print)
    inputs = {"noise": sampling_noise(model, 3, 0).numpy()}
    if model.classes:
        inputs["labels"] = labels.numpy()
    theirs = torch.from_numpy(session.run(None, inputs)[0])
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
