"""The one call on vectors and images, the card, and the ONNX file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError, sample
from progdist.cli import app
from progdist.model import Model
from progdist.model_folder import load, save
from progdist.parameterization import PARAMETERIZATIONS
from progdist.plan import Progress


class Linear(nn.Module):
    """v = a(t) z + b(t) exactly for Gaussian data, if a and b are learnt: two numbers for each of 64 times."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(65, 2))

    def forward(self, z: Tensor, timestep: Tensor, shift: Tensor | None = None) -> Tensor:
        a, b = self.table[((timestep + 1) / 16).round().long()].unbind(1)
        moved = 0 if shift is None else shift[:, None].float()
        return a[:, None] * z + b[:, None] + moved


def exact_teacher(mean: float = 0.3, width: float = 0.5) -> Denoiser:
    """The posterior mean of N(mean, width^2), written into the table."""
    schedule, network = Cosine(), Linear()
    t = torch.arange(1, 65, dtype=torch.float64) / 64
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    spread = alpha**2 * width**2 + sigma**2
    slope, rest = alpha * width**2 / spread, sigma**2 * mean / spread  # xh = slope z + rest, v = (alpha z - xh) / sigma
    with torch.no_grad():
        network.table[1:] = torch.stack([(alpha - slope) / sigma, -rest / sigma], 1).float()
    return Denoiser(network, schedule, PARAMETERIZATIONS["v"], timesteps=1024)


def test_one_call_makes_the_student_of_an_exact_teacher() -> None:
    """A linear student can do what two steps of a linear teacher do: it lands where 64 steps land, in 16."""
    teacher, noise = exact_teacher(), torch.randn(2000, 2)
    before = teacher.network.table.clone()  # pyright: ignore
    data = 0.3 + 0.5 * torch.randn(4000, 2)
    how: dict[str, Any] = {"updates": 600, "batch": 256, "learning_rate": 0.02, "weighting": "snr_plus_one"}
    student = progdist.distill(teacher, data, [64, 32, 16], **how)
    theirs, ours = sample(teacher, noise, 64), sample(student, noise, 16)
    apart = float((sample(teacher, noise, 16) - theirs).abs().max())
    assert float((ours - theirs).abs().max()) < 0.15 * apart
    assert torch.equal(before, teacher.network.table)  # pyright: ignore
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_updates_by_stage_labels_and_observer() -> None:
    seen: list[tuple[int, int]] = []

    def observe(steps: int, progress: Progress) -> None:
        seen.append((steps, progress.update))

    pairs = [(torch.randn(2), index % 3) for index in range(30)]
    progdist.distill(
        exact_teacher(), iter(pairs), [8, 4, 2], updates={4: 2, 2: 3}, batch=4, label="shift", observe=observe
    )
    assert seen == [(4, 1), (4, 2), (2, 1), (2, 2), (2, 3)]


def test_microbatches_give_the_same_student() -> None:
    data, how = torch.randn(64, 2), {"updates": 5, "batch": 8, "learning_rate": 1e-2}
    whole, parts = (progdist.distill(exact_teacher(), data, [4, 2], microbatches=n, **how) for n in (1, 4))
    torch.testing.assert_close(whole.network.table, parts.network.table, rtol=1e-5, atol=1e-6)


def test_an_eps_teacher_gets_a_v_student_first() -> None:
    teacher = Denoiser(Linear(), Discrete.linear(timesteps=1024), PARAMETERIZATIONS["eps"], timesteps=1024)
    student = progdist.distill(teacher, torch.randn(32, 2), [4, 2], updates=2, match_updates=2, batch=4)
    assert type(student.parameterization) is type(PARAMETERIZATIONS["v"])
    assert float(student.schedule.alpha(torch.ones(()).double())) == 0


def ragged() -> Iterator[Tensor]:
    yield torch.zeros(2)
    yield torch.zeros(3)


@pytest.mark.parametrize(
    ("data", "how", "says"),
    [
        ([], {}, "no data"),
        (torch.zeros(4, 2), {"weighting": "snrr"}, "constant, snr"),
        (list(ragged()), {"batch": 2, "updates": 1}, "one shape"),
    ],
)
def test_mistakes_are_named(data: Any, how: dict[str, Any], says: str) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=says):
        progdist.distill(exact_teacher(), data, [4, 2], **how)


@pytest.mark.parametrize(("schedule", "kind"), [(Cosine(), "v"), (RectifiedFlow(), "velocity"), (Cosine(), "x_eps")])
@pytest.mark.parametrize("classes", [0, 5])
def test_the_card_is_right(
    tiny_model: Callable[..., Denoiser], tmp_path: Path, schedule: Any, kind: str, classes: int,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its own code, run in the folder, samples; its header is the hub's."""
    denoiser = tiny_model(schedule, kind, classes)
    if kind == "x_eps" and classes:
        return  # its code samples through progdist without classes: see `progdist sample --label`
    place = tmp_path / "student"
    save(Model(denoiser, (4,), (16, 8), tuple(map(str, range(classes))), "digits"), place)
    text = (place / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n")
    assert "16 -> 8 -> 4 steps" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    exec(code, names)
    made = names["images"] if "images" in names else names["z"]
    assert len(made) == 16


@pytest.mark.parametrize("classes", [0, 5])
def test_onnx_is_the_whole_loop(tiny_model: Callable[..., Denoiser], tmp_path: Path, classes: int) -> None:
    """onnxruntime makes torch's images from the same noise within 1e-4, at batch sizes it was not traced with."""
    runtime = pytest.importorskip("onnxruntime")
    denoiser = tiny_model(classes=classes)
    save(Model(denoiser, (2,), (4,), tuple(map(str, range(classes)))), tmp_path / "student")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "student"), "--onnx", str(tmp_path / "student.onnx")])
    assert result.exit_code == 0, result.output
    session = runtime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3, 7):
        noise, labels = torch.randn(count, 1, 8, 8), torch.arange(count) % max(classes, 1)
        given: dict[str, Any] = {"class_labels": labels} if classes else {}
        inputs = {"noise": noise.numpy()} | ({"labels": labels.numpy()} if classes else {})
        (theirs,) = session.run(["images"], inputs)
        np.testing.assert_allclose(sample(load(tmp_path / "student").denoiser, noise, 2, **given), theirs, atol=1e-4)


def test_onnx_needs_a_step_count(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    save(Model(tiny_model()), tmp_path / "teacher")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "teacher"), "--onnx", str(tmp_path / "t.onnx")])
    assert result.exit_code == 2
    assert "--steps" in result.stderr
