"""The lines of docs/your-network.md, on stand-ins that know their data exactly: N(0.3, 0.1^2), moved by conditions."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import progdist
from progdist.training.config import DEFAULTS
from support import foreign
from support.paths import ROOT

TEXT = (ROOT / "docs" / "your-network.md").read_text()
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S))
IMAGES = 0.3 + 0.1 * torch.randn(128, 3, 8, 8)
PITCH, INSTRUMENT, ALCOHOL = torch.linspace(-0.5, 0.5, 128), torch.arange(128) % 3, torch.linspace(-0.5, 0.5, 128)
LOW = 0.3 * torch.randn(128, 3, 8, 8)
MOVED = (PITCH - 0.2 * INSTRUMENT)[:, None, None]

MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, Tensor], Tensor | float]] = {
    "denoising-diffusion-pytorch": (
        {"diffusion": foreign.gaussian_diffusion(), "images": (IMAGES + 1) / 2}, (3, 8, 8), {}, 0.0,
    ),
    "EDM": ({"net": foreign.Preconditioned(), "images": IMAGES}, (3, 8, 8), {}, 0.0),
    "EDM's raw network": ({"net": foreign.Raw(), "images": IMAGES}, (3, 8, 8), {}, 0.0),
    "azula": (
        {"denoiser": foreign.Posterior(), "denoiser_schedule": foreign.Schedule(), "images": IMAGES},
        (3, 8, 8), {}, 0.0,
    ),
    "torchcfm": ({"net": foreign.Flow(), "images": IMAGES}, (3, 8, 8), {}, 0.0),
    "Audio with two conditions": (
        {
            "network": foreign.Audio(), "audio": 0.3 + MOVED + 0.1 * torch.randn(128, 1, 50),
            "pitch": PITCH, "instrument": INSTRUMENT,
        },
        (1, 50), {"pitch": PITCH, "instrument": INSTRUMENT}, MOVED,
    ),
    "Rows of a table": (
        {
            "network": foreign.Table(), "rows": 0.3 + ALCOHOL[:, None] + 0.1 * torch.randn(128, 12),
            "alcohol": ALCOHOL, "TensorDataset": TensorDataset,
        },
        (12,), {"alcohol": ALCOHOL}, ALCOHOL[:, None],
    ),
    "Super-resolution by concatenation": (
        {"network": foreign.SuperResolution(), "high": IMAGES + LOW, "low": LOW}, (3, 8, 8), {"low": LOW}, LOW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", MODELS)
def test_its_lines_make_a_student_of_the_teacher_that_was_meant(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's samples have the data's mean and width: schedule, times, output and conditions are its own."""
    given, shape, condition, moved = MODELS[title]
    (block,) = re.findall(r"```python\n(.*?)```", SECTIONS[title], re.S)
    assert len([line for line in block.splitlines() if line]) <= 5
    monkeypatch.setitem(DEFAULTS["distill"], "updates", 2)
    monkeypatch.setitem(DEFAULTS["distill"], "batch", 8)
    names: dict[str, Any] = {"progdist": progdist, "torch": torch, **given}
    exec(block, names)
    steps = 100 if title == "Rows of a table" else 500  # of its 100 timesteps
    made = progdist.sample(names["teacher"], torch.randn(128, *shape), steps, **condition) - moved
    assert abs(float(made.mean()) - 0.3) < 0.02
    assert abs(float(made.std()) - foreign.WIDTH) < 0.015  # DDIM's error in so many steps
    assert isinstance(names["student"], progdist.Denoiser)
    first = {name: rows[:64] for name, rows in condition.items()}
    samples = names.get("samples", progdist.sample(names["student"], torch.randn(64, *shape), 4, **first))
    assert samples.shape == (64, *shape)
    assert samples.isfinite().all()


def test_every_model_of_the_page_is_run() -> None:
    assert set(SECTIONS) == set(MODELS)
    assert len(MODELS) == 8


def test_an_edm_is_distilled_on_another_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS["distill"], "updates", 2)
    monkeypatch.setitem(DEFAULTS["distill"], "batch", 8)
    names: dict[str, Any] = {"progdist": progdist, "torch": torch, "net": foreign.Raw(), "images": IMAGES}
    titles = (SECTIONS["EDM's raw network"], TEXT.partition("## The steps of an EDM")[2])
    for block in (re.findall(r"```python\n(.*?)```", text, re.S)[0] for text in titles):
        exec(block, names)
    teacher, student = names["teacher"], names["student"]
    assert (teacher.schedule.spacing, student.schedule.spacing) == ("power", "angle")
    made = progdist.sample(student, torch.randn(64, 3, 8, 8), 64)
    assert abs(float(made.mean()) - 0.3) < 0.05
