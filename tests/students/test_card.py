"""The code of a model card, run as it stands in the folder."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from progdist import Cosine, Denoiser, RectifiedFlow, UserError
from progdist.evaluation.generate import SamplingOptions
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.model import Model
from progdist.students.folder import save
from progdist.teachers.own import load


@pytest.mark.parametrize(
    ("schedule", "parameterization"), [(Cosine(), "v"), (RectifiedFlow(), "velocity"), (Cosine(), "x_eps")]
)
@pytest.mark.parametrize("classes", [0, 5])
def test_the_card_is_right(
    tiny_model: Callable[..., Denoiser], tmp_path: Path, schedule: Any, parameterization: str, classes: int,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its own code, run in the folder, samples; its header is the hub's."""
    denoiser = tiny_model(schedule, parameterization, classes)
    folder = tmp_path / "student"
    conditioning = Classes(tuple(map(str, range(classes)))) if classes else Conditioning()
    save(Model(denoiser, (4,), (16, 8), conditioning, "digits"), folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n")
    assert "16 -> 8 -> 4 steps" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    samples = names["images"] if "images" in names else names["z"]
    assert len(samples) == 16


@pytest.mark.parametrize(
    ("method", "steps", "said", "unwarned"),
    [
        ("progressive", 4, "Made by [progressive distillation](https://arxiv.org/abs/2202.00512), ", {("ddim", 4)}),
        ("balanced", 4, "[progressive distillation with balanced times](https://arxiv.org/abs/2312.", {("ddim", 4)}),
        (
            "stochastic", 4, "in 4 steps of DDIM, in 8 steps of `progdist sample --method overshoot`, and poor",
            {("ddim", 4), ("overshoot", 8), ("overshoot", 4)},
        ),
        (
            "tract", 1, "in 1 step of DDIM, in several steps of `progdist sample --method consistency`, and poor",
            {("ddim", 1), ("consistency", 4), ("consistency", 8)},
        ),
    ],
)  # fmt: skip
def test_what_a_student_learned_is_said_and_warned_of(
    tiny_model: Callable[..., Denoiser], tmp_path: Path, method: str, steps: int, said: str, unwarned: set[Any]
) -> None:
    model = Model(tiny_model(), (steps,), (16,), data="digits", method=method)
    save(model, tmp_path / "student")
    assert said in (tmp_path / "student" / "README.md").read_text()
    loaded, warnings = load(tmp_path / "student"), list[str]()
    assert loaded.method == method
    for sampler, count in {("ddim", 4), ("ddim", 8), ("overshoot", 8), ("overshoot", 4), ("consistency", 8), *unwarned}:
        warnings.clear()
        SamplingOptions(count, 1, None, 0, sampler).check(loaded, warnings.append)
        assert bool(warnings) == (count != steps and (sampler, count) not in unwarned)
    path = tmp_path / "student" / "progdist.json"
    path.write_text(path.read_text().replace(f'"method": "{method}"', '"method": "other"'))
    with pytest.raises(UserError, match="method is other, expected one of progressive"):
        load(tmp_path / "student")


def test_the_card_of_a_students_own_method_names_no_other(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    save(Model(tiny_model(), (4,), (16,), data="digits", method="mine"), tmp_path / "student")
    text = (tmp_path / "student" / "README.md").read_text()
    assert "Made by distillation, 16 -> 4 steps. It samples well in 4 steps of DDIM" in text
    assert load(tmp_path / "student").method == ""


@pytest.mark.slow
def test_the_card_of_a_latent_model_runs(latent_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (latent_student / "README.md").read_text()
    assert "Images of 8x8 with 1 channel" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    monkeypatch.chdir(latent_student)
    found: dict[str, Any] = {}
    exec(code[1], found)
    assert len(found["images"]) == 16
    assert np.asarray(found["images"][0]).shape == (8, 8)
