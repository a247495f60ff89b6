"""What saves memory changes nothing: inner values computed twice, and students of low rank."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from conftest import call, stock_network
from progdist import Cosine, Denoiser, UserError
from progdist.cli.doctor import TRIAL
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.models.io.folder import load
from progdist.models.unet import unet
from progdist.runs.estimate import measure
from progdist.training.config import TrainConfig
from progdist.training.loop import Batch, train
from progdist.training.lora import add_lora, merge_lora

PLAN = TrainConfig(updates=3, batch=4, learning_rate=1e-3)


def batches(first: int, last: int, rows: slice) -> list[Batch]:
    draws = (torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(first, last))
    return [{"x": draw[rows]} for draw in draws]


def error(network: nn.Module, batch: Batch) -> Tensor:
    return (network(batch["x"], torch.zeros(len(batch["x"]))).sample - 1).square().flatten(1).mean(1)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def trained(network: nn.Module, config: TrainConfig = PLAN) -> nn.Module:
    return train(network, error, batches, config, accelerator=Accelerator())[0]  # pyright: ignore[reportArgumentType]


def test_inner_values_computed_twice_are_the_same() -> None:
    plain, twice = trained(stock_network()), trained(stock_network(), replace(PLAN, gradient_checkpointing=True))
    assert torch.equal(weights(plain), weights(twice))


def test_inner_values_computed_twice_are_not_kept() -> None:
    network = unet(image=(1, 8, 8), width=8, multipliers=(1, 2), groups=4)
    denoiser = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"])
    kept, few = (
        measure(denoiser, (1, 8, 8), 4, replace(TRIAL, gradient_checkpointing=twice)).saved for twice in (False, True)
    )
    assert few < 0.5 * kept


def test_a_network_without_the_method_is_refused() -> None:
    with pytest.raises(UserError, match="enable_gradient_checkpointing"):
        trained(nn.Linear(2, 2), replace(PLAN, gradient_checkpointing=True))


def test_a_low_rank_student_begins_as_its_teacher_and_shares_its_weights() -> None:
    teacher = stock_network()
    before = weights(teacher)
    student = add_lora(teacher, 2, seed=0)
    z, timestep = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert torch.equal(student(z, timestep).sample, teacher(z, timestep).sample)
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    shared = {parameter.data_ptr() for parameter in teacher.parameters()}
    held = {parameter.data_ptr() for parameter in student.parameters()}
    assert shared <= held
    assert 0 < sum(parameter.numel() for parameter in learning) < 0.5 * len(before)
    student = trained(student)
    assert torch.equal(weights(teacher), before)
    plain = merge_lora(student)
    assert plain.state_dict().keys() == teacher.state_dict().keys()
    assert torch.equal(weights(teacher), before)
    assert not torch.allclose(plain(z, timestep).sample, teacher(z, timestep).sample, atol=1e-4)
    torch.testing.assert_close(plain(z, timestep).sample, student(z, timestep).sample, rtol=1e-4, atol=1e-5)


def test_corrections_are_of_the_rank() -> None:
    teacher = stock_network()
    plain = merge_lora(trained(add_lora(teacher, 2, seed=0)))
    for (name, new), old in zip(plain.named_parameters(), teacher.parameters(), strict=True):
        if new.ndim == 4 and "attn" not in name:
            assert torch.linalg.matrix_rank((new - old).flatten(1), atol=1e-5) <= 2


def test_a_low_rank_run_leaves_plain_folders(tiny_recipe: Path, tmp_path: Path) -> None:
    words = ("run", tiny_recipe, "--out", tmp_path / "a", "--set", "distill.lora_rank=2", "--set", "distill.end=4")
    assert call(*words).exit_code == 0
    teacher, student = (load(tmp_path / "a" / name).denoiser.network for name in ("teacher", "student-0004"))
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert not torch.equal(weights(student), weights(teacher))


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Denoiser]) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"progdist\[lora\]"):
        add_lora(tiny_model().network, 2, seed=0)
