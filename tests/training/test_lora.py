"""LoRA adapters begin as nothing, keep their rank and are merged into plain weights."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from progdist import Denoiser, UserError
from progdist.models.io.folder import load
from progdist.training.lora import add_lora, merge_lora
from support.commands import call
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
