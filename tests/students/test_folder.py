"""A model folder is read as it was written; damage is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import progdist
from progdist import Cosine, Denoiser, Discrete, UserError, sample
from progdist._utils.files import FORMAT_VERSION
from progdist.models.conditioning import Classes
from progdist.models.model import Model
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load

Build = Callable[..., Denoiser]


def test_two_heads_are_kept_without_a_scheduler(tiny_model: Build, tmp_path: Path) -> None:
    denoiser = tiny_model(parameterization="x_eps")
    progdist.save(denoiser, tmp_path / "model")
    assert not (tmp_path / "model" / "scheduler").exists()
    noise = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(sample(progdist.load(tmp_path / "model"), noise, 2), sample(denoiser, noise, 2))


def test_what_is_saved_comes_back(tiny_model: Build, tmp_path: Path) -> None:
    model = Model(
        tiny_model(Discrete((0.9, 0.4, 0.1)), classes=2), (4, 2), (16, 8), Classes(("cat", "dog")), "npz:x", {"n": 1}
    )
    save(model, tmp_path / "model")
    back = load(tmp_path / "model")
    assert back.denoiser.schedule == model.denoiser.schedule
    assert (back.steps, back.lineage, back.classes, back.data, back.training) == (
        (4, 2), (16, 8), ("cat", "dog"), "npz:x", {"n": 1},
    )  # fmt: skip
    description = json.loads((tmp_path / "model" / "progdist.json").read_text())
    assert set(description["versions"]) == {"progdist", "torch", "diffusers"}


def test_an_existing_folder_is_never_written_over(tiny_model: Build, tmp_path: Path) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    with pytest.raises(UserError, match="exists"):
        progdist.save(tiny_model(), tmp_path / "model")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _change(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no progdist.json": lambda folder: (folder / "progdist.json").unlink(),
    "progdist.json cut": lambda folder: _cut(folder / "progdist.json"),
    "no JSON object": lambda folder: _write(folder / "progdist.json", "[]"),
    "unknown schedule": lambda folder: _change(folder / "progdist.json", schedule={"kind": "cosmic"}),
    "schedule of other numbers": lambda folder: _change(folder / "progdist.json", schedule={"kind": "cosine", "a": 1}),
    "no parameterization": lambda folder: _change(folder / "progdist.json", parameterization=None),
    "no checksums": lambda folder: _change(folder / "progdist.json", sha256=None),
    "steps that are words": lambda folder: _change(folder / "progdist.json", steps=["many"]),
    "weights missing": lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
    "weights cut": lambda folder: _cut(folder / "unet" / "diffusion_pytorch_model.safetensors"),
    "another network": lambda folder: _change(folder / "unet" / "config.json", block_out_channels=[16, 16]),
    "config cut": lambda folder: _cut(folder / "unet" / "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused(tiny_model: Build, tmp_path: Path, damage: str) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    DAMAGE[damage](tmp_path / "model")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "model") in str(caught.value)


def test_classes_are_kept(tiny_model: Build, tmp_path: Path) -> None:
    denoiser = tiny_model(classes=3)
    progdist.save(denoiser, tmp_path / "numbers")
    assert load(tmp_path / "numbers").classes == ("0", "1", "2")
    progdist.save(denoiser, tmp_path / "names", classes=("ant", "bee", "cat"))
    assert load(tmp_path / "names").classes == ("ant", "bee", "cat")
    with pytest.raises(UserError, match="got 1 class names, expected 3: name each class of the network"):
        progdist.save(denoiser, tmp_path / "other", classes=("ant",))


class OwnSchedule(Cosine):
    """A user's own."""


def test_a_schedule_of_ones_own_has_no_folder(tiny_model: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got OwnSchedule with V"):
        progdist.save(tiny_model(OwnSchedule()), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_that_were_not_written_are_refused(tiny_model: Build, tmp_path: Path) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    (weights.parent / "more.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match=r'more.safetensors is not one of .* set "sha256" to {} in'):
        load(tmp_path / "model")
    _change(tmp_path / "model" / "progdist.json", sha256={})
    assert load(tmp_path / "model").steps == ()  # as the message says


@pytest.mark.parametrize("steps", [[10**13], [0], [True, "4"], [4.5]])
def test_step_counts_that_no_model_has_are_refused(tiny_model: Build, tmp_path: Path, steps: list[Any]) -> None:
    progdist.save(tiny_model(), tmp_path / "model")
    _change(tmp_path / "model" / "progdist.json", steps=steps)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "model")


def test_an_offset_of_our_own_folder_is_kept(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    save(Model(tiny_model()), tmp_path / "model")
    assert open_teacher(str(tmp_path / "model"), 0.0).model.denoiser.offset == 0


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (99, "has format version 99, and this progdist reads up to"),
        ("x", "expected a whole number"),
        (None, "expected a whole number"),
    ],
)
def test_a_later_format_is_told_as_such(tiny_model: Build, tmp_path: Path, found: Any, message: str) -> None:  # noqa: ANN401
    save(Model(tiny_model()), tmp_path / "m")
    path = tmp_path / "m" / "progdist.json"
    description = json.loads(path.read_text())
    assert description.pop("format_version") == FORMAT_VERSION
    path.write_text(json.dumps({**description, "format_version": found}))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "m")


def test_a_run_in_place_of_a_model_is_told_which_it_has(finished: tuple[Path, Result]) -> None:
    run, _ = finished
    for wrong in (run, run / "student-0064"):
        with pytest.raises(UserError, match=rf"not a model folder .* give one of {run / 'student-0001'}, "):
            load(wrong)
