"""The code of a model card, run as it stands in the folder."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from progdist import Cosine, Denoiser, RectifiedFlow
from progdist.models.io.folder import save
from progdist.models.model import Model


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
    save(Model(denoiser, (4,), (16, 8), tuple(map(str, range(classes))), "digits"), folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n")
    assert "16 -> 8 -> 4 steps" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    samples = names["images"] if "images" in names else names["z"]
    assert len(samples) == 16


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


@pytest.mark.slow
def test_the_code_of_old_cards_still_runs(latent_student: Path) -> None:
    names: dict[str, Any] = {}
    code = (
        "from pathlib import Path\n"
        "from progdist.making import Wish, make\n"
        "from progdist.model_folder import load\n"
        f"images, labels, steps = make(load(Path({str(latent_student)!r})), Wish(4, 3, None, seed=0), print)\n"
    )
    exec(code, names)
    assert names["images"].shape == (3, 1, 8, 8)
