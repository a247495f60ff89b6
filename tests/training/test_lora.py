"""LoRA adapters begin as nothing, keep their rank and are merged into plain weights."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from progdist import Denoiser, UserError
from progdist.distillation import stage_training
from progdist.recipes.files import read_recipe
from progdist.runs.run import open_run, untrained
from progdist.teachers.own import load
from progdist.training.loop import train
from progdist.training.lora import add_lora, merge_lora
from progdist.training.state import copy_for_average
from support.commands import SilentCallback, call
from support.stock import stock_network
from support.training import flat_weights, train_briefly


def test_a_low_rank_student_begins_as_its_teacher_and_shares_its_weights() -> None:
    teacher = stock_network()
    before = flat_weights(teacher)
    student = add_lora(teacher, 2, seed=0)
    z, timestep = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert torch.equal(student(z, timestep).sample, teacher(z, timestep).sample)
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    shared = {parameter.data_ptr() for parameter in teacher.parameters()}
    held = {parameter.data_ptr() for parameter in student.parameters()}
    assert shared <= held
    assert 0 < sum(parameter.numel() for parameter in learning) < 0.5 * len(before)
    student = train_briefly(student)
    assert torch.equal(flat_weights(teacher), before)
    plain = merge_lora(student)
    assert plain.state_dict().keys() == teacher.state_dict().keys()
    assert torch.equal(flat_weights(teacher), before)
    assert not torch.allclose(plain(z, timestep).sample, teacher(z, timestep).sample, atol=1e-4)
    torch.testing.assert_close(plain(z, timestep).sample, student(z, timestep).sample, rtol=1e-4, atol=1e-5)


def test_an_average_shares_what_is_frozen() -> None:
    """The base weights are held once by the teacher, its low-rank student and the average; the adapters are not."""
    student = add_lora(stock_network(), 2, seed=0)
    pairs = list(zip(student.parameters(), copy_for_average(student).parameters(), strict=True))
    assert all((one is other) != one.requires_grad for one, other in pairs)
    assert any(one.requires_grad for one, _ in pairs)
    whole = stock_network().requires_grad_(False)  # ready to be sampled, and trained later
    assert not any(
        one is other for one, other in zip(whole.parameters(), copy_for_average(whole).parameters(), strict=True)
    )


def test_a_self_taught_low_rank_student_holds_its_base_once(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TRACT's stage hands to the training loop, at work and in training: the average's frozen weights."""
    seen: list[list[bool]] = []

    def watched(network: torch.nn.Module, *arguments: Any, average: torch.nn.Module, **options: Any) -> Any:  # noqa: ANN401
        pairs = zip(network.parameters(), average.parameters(), strict=True)
        seen.append([one is other for one, other in pairs if not one.requires_grad])
        return train(network, *arguments, average=average, **options)

    settings = ["distill.chain=[8,4]", "distill.method=tract", "distill.ema=0.5", "distill.lora_rank=2"]
    recipe = read_recipe(str(tiny_recipe), settings)
    run = open_run(recipe, tmp_path / "run", SilentCallback())
    teacher = replace(untrained(recipe, (1, 8, 8), (), "digits"), training={"updates": 1})
    monkeypatch.setattr("progdist.distillation.train", watched)
    run.trainer().fit(stage_training(run.context.plan, 1, teacher, run.context.teacher))
    assert len(seen) == 1
    assert seen[0]
    assert all(seen[0])


def test_adapters_are_of_the_rank() -> None:
    teacher = stock_network()
    plain = merge_lora(train_briefly(add_lora(teacher, 2, seed=0)))
    for (name, new), old in zip(plain.named_parameters(), teacher.parameters(), strict=True):
        if new.ndim == 4 and "attn" not in name:
            assert torch.linalg.matrix_rank((new - old).flatten(1), atol=1e-5) <= 2


@pytest.mark.slow
def test_a_low_rank_run_leaves_plain_folders(tiny_recipe: Path, tmp_path: Path) -> None:
    arguments = ("run", tiny_recipe, "--out", tmp_path / "a", "--set", "distill.lora_rank=2", "--set", "distill.end=4")
    assert call(*arguments).exit_code == 0
    teacher, student = (load(tmp_path / "a" / name).denoiser.network for name in ("teacher", "student-0004"))
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert not torch.equal(flat_weights(student), flat_weights(teacher))


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Denoiser]) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"progdist\[lora\]"):
        add_lora(tiny_model().network, 2, seed=0)
