"""What the commands make of class-conditional students that take a guidance scale: samples, measurements, classes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import progdist
from progdist import Denoiser, UserError, evaluate
from progdist._utils.files import read_tensors
from progdist.distillation import with_guidance
from progdist.evaluation.generate import SamplingOptions, sampling_noise
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.model import Model
from progdist.recipes.files import validated
from progdist.runs.pages.play import Playable
from progdist.runs.run import open_run
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import SilentCallback, call, refused, succeeds
from support.guidance import student
from support.stock import SaveStock


def test_the_command_samples_at_a_scale(stock: SaveStock, tmp_path: Path) -> None:
    model = student(open_teacher(str(stock(classes=11))).model)
    save(model, tmp_path / "student")
    made = tmp_path / "made.safetensors"
    result = call("sample", tmp_path / "student", "-n", 4, "--guidance", 3, "--label", 2, "--out", made)
    assert result.exit_code == 0, result.output
    labels = torch.full((4,), 2)
    expected = progdist.sample(model.denoiser, sampling_noise(model, 4, 0), 4, class_labels=labels, guidance=3.0)
    torch.testing.assert_close(read_tensors(made)["images"], expected)
    far = call("sample", tmp_path / "student", "-n", 1, "--guidance", 20, "--out", tmp_path / "far.png")
    assert "guidance of 1 to 8, not 20" in far.output


def null_class(model: Model) -> int | None:
    """The label that stands for no class."""
    assert isinstance(model.conditioning, Classes)
    return model.conditioning.null_class


def with_null_class(model: Model, label: int | None) -> Model:
    """A student of two steps in whose place of no class another label stands."""
    assert isinstance(model.conditioning, Classes)
    return replace(model, steps=(2,), conditioning=replace(model.conditioning, null_class=label, shares=()))


@pytest.mark.slow
def test_the_class_that_stands_for_none_is_not_sampled(
    stock: SaveStock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 0 records it, the folder keeps it, and no draw of classes has it, nor the code of the card."""
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(stock(classes=11))}}
    words = ("conversion.guidance=2", "conversion.updates=1", "conversion.batch=2")
    run = open_run(validated(content, words, "test"), tmp_path / "run", SilentCallback())
    opened = run.context.opened
    assert opened
    assert null_class(opened.model) is None
    converted = run.train_teacher(run.trainer())
    assert null_class(converted) == 10
    shares = np.bincount(load_digits().target)  # pyright: ignore
    assert converted.conditioning.shares == (*shares, 0)
    drawn = SamplingOptions(2, 1797).labels_of(converted)
    assert np.bincount(drawn, minlength=11).tolist() == [*shares, 0]
    message = "guidance requires a teacher with classes or prompts, and it has neither: remove guidance"
    with pytest.raises(UserError, match=message):
        with_guidance(run.context.plan, replace(opened, model=replace(opened.model, conditioning=Conditioning())))
    for null, labels in ((10, [*range(10), *range(6)]), (1, [0, *range(2, 11), 0, *range(2, 7)])):
        model, folder = with_null_class(converted, null), tmp_path / f"null{null}"
        save(model, folder)
        loaded = load(folder)
        assert (null_class(loaded), len(loaded.classes), len(loaded.labels)) == (null, 11, 10)
        options = SamplingOptions(2, 16, None, 0)
        assert options.labels_of(loaded).tolist() == labels
        card = (folder / "README.md").read_text()
        assert "10 classes" in card
        monkeypatch.chdir(folder)
        found: dict[str, Any] = {}
        exec(card.partition("```python\n")[2].partition("```")[0], found)
        assert found["labels"].tolist() == labels
        assert [label for label, _ in Playable("a", loaded, 2).describe()["classes"]] == sorted(set(labels))
        refused(call("sample", folder, "--label", null), f"label {null} is the null class")
    save(with_null_class(converted, None), tmp_path / "all")
    with pytest.raises(UserError, match="the teacher makes images of other classes than"):  # ten and eleven in turn
        evaluate(
            tmp_path / "null10", 2 * torch.rand(8, 1, 8, 8) - 1, SamplingOptions(2, 11), teacher=(tmp_path / "all", 2)
        )
    (tmp_path / "null1" / "progdist.json").write_text(
        (folder / "progdist.json").read_text().replace('"null_class": 1', '"null_class": 11')
    )
    with pytest.raises(UserError, match="null_class is 11, expected a label below 11"):
        load(tmp_path / "null1")


@pytest.mark.slow
def test_the_command_measures_at_a_scale(stock: SaveStock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and teacher at the scale that is named, or at the usual one; one without that input is refused first."""
    model, seen = student(open_teacher(str(stock(classes=11))).model), set[float]()
    save(model, tmp_path / "student")
    save(replace(model, denoiser=open_teacher(str(stock(classes=11))).model.denoiser), tmp_path / "plain")
    forward = Denoiser.forward

    def spy(self: Denoiser, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        seen.update(condition["guidance"].tolist())
        return forward(self, z, t, **condition)

    monkeypatch.setattr(Denoiser, "forward", spy)
    words = ("evaluate", tmp_path / "student", "--data", "digits", "-n", 8)
    itself = ("--teacher", tmp_path / "student", "--teacher-steps", 4)
    found = {}
    for scale, said in ((2.5, ("--guidance", 2.5)), (4, ())):
        seen.clear()
        record = json.loads(succeeds(*words, *itself, *said, "--json").stdout)
        assert (seen, record["guidance"], record["rmse"]) == ({scale}, scale, 0)
        found[scale] = record["frechet"]
    assert found[2.5] != found[4]
    table = " ".join(succeeds(*words, "--guidance", 2.5).stdout.split())
    assert "steps guidance" in table
    assert " 4 2.5 " in table
    seen.clear()
    message = f"{tmp_path / 'plain'}: guidance 3 has no effect: this model has no guidance input"
    refused(call(*words, "--guidance", 3, "--teacher", tmp_path / "plain"), message)
    refused(call("evaluate", tmp_path / "student", tmp_path / "plain", *words[2:], "--guidance", 3), message)
    assert not seen
    for scale, expected in ((0, "positive"), (-1, "positive"), ("nan", "finite"), ("inf", "finite")):
        refused(call(*words, "--guidance", scale), f"expected a {expected} number")
