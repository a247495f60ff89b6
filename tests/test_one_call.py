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
from progdist.cli.app import app
from progdist.diffusion.parameterization import PARAMETERIZATIONS, V
from progdist.models.io.folder import load, save
from progdist.models.model import Model
from progdist.training.callbacks import Progress


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
    whole, parts = (
        progdist.distill(exact_teacher(), data, [4, 2], gradient_accumulation_steps=n, **how) for n in (1, 4)
    )
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
        (torch.zeros(4, 2), {"precision": "fp16"}, "auto, float32, bf16"),
        (torch.zeros(4, 2), {"lr_scheduler": "cosine"}, "linear, constant"),
        (torch.zeros(4, 2), {"updates": {4: 1}}, r"has the keys \[4\], and the students' steps are \[2\]"),
        (torch.zeros(4, 2), {"updates": 0}, "at least 1"),
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


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5])
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


def test_a_weighting_that_is_nothing_at_one_step_is_refused() -> None:
    network = exact_teacher().network
    flow = Denoiser(network, RectifiedFlow(), PARAMETERIZATIONS["velocity"])
    with pytest.raises(UserError, match="0 at t = 1"):
        progdist.distill(flow, torch.zeros(4, 2), [4, 2, 1], weighting="snr")
    progdist.distill(flow, torch.zeros(4, 2), [4, 2], weighting="snr", updates=1, batch=2)


def test_the_callers_random_numbers_and_environment_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, how = torch.randn(16, 2), {"updates": 3, "batch": 8, "learning_rate": 1e-2}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    plain = progdist.distill(exact_teacher(), data, [4, 2], **how)
    assert torch.equal(torch.rand(3), expected)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    again = progdist.distill(exact_teacher(), data, [4, 2], **how)
    assert torch.equal(plain.network.table, again.network.table)  # pyright: ignore


class Placed(nn.Module):
    """A network that takes what is on its own device, and nothing else."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, device=device))

    def forward(self, z: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        given = (z, timestep) if class_labels is None else (z, timestep, class_labels)
        assert {tensor.device.type for tensor in given} == {self.weight.device.type}
        return self.weight * z


@pytest.mark.parametrize("method", ["ddim", "ancestral", "overshoot", "heun"])
def test_no_tensor_is_made_on_the_wrong_device(method: str) -> None:
    """On the meta device, which refuses the CPU's tensors: losses, targets and samples stay where the data are."""
    teacher, student = (Denoiser(Placed("meta"), Cosine(), PARAMETERIZATIONS["v"]) for _ in range(2))
    x, u = torch.zeros(4, 2, device="meta"), torch.rand(4, dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    weighting = progdist.WEIGHTINGS["truncated_snr"]
    loss = progdist.distillation_loss(student, teacher, x, x, u, steps=4, weighting=weighting, class_labels=labels)
    assert loss.device.type == "meta"
    assert progdist.denoising_loss(student, x, x, u, weighting=weighting).device.type == "meta"
    assert sample(student, x, 4, method=method, clip=True).device.type == "meta"


def test_a_student_comes_back_to_where_its_teacher_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []
    to = Denoiser.to

    def watched(self: Denoiser, *where: Any, **how: Any) -> Denoiser:  # noqa: ANN401
        seen.append(where[0])
        return to(self, *where, **how)

    monkeypatch.setattr(Denoiser, "to", watched)
    student = progdist.distill(exact_teacher(), torch.randn(8, 2), [4, 2], updates=1, batch=4)
    assert seen[-1] == torch.device("cpu")
    assert sample(student, torch.randn(3, 2), 2).shape == (3, 2)


class OwnOutput(V):
    """A user's own."""


def test_an_output_of_ones_own_can_be_distilled() -> None:
    teacher = Denoiser(exact_teacher().network, Cosine(), OwnOutput())
    student = progdist.distill(teacher, torch.randn(8, 2), [4, 2], updates=1, batch=4)
    assert type(student.parameterization) is OwnOutput
