"""Training with CUDA graphs learns what it learns without; the CPU imitates them here, static buffers and all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from progdist.compute.cuda_graphs import CALLS_BEFORE
from progdist.training.checkpoint import Checkpoints
from support.loop import CONFIG, equal, trained

GRAPHS = replace(CONFIG, updates=CALLS_BEFORE + 12, cuda_graphs=True, checkpoint_every=CALLS_BEFORE + 6)


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is captured: like make_graphed_callables' own, it gives the same output and gradients at each call."""
    made: list[nn.Module] = []

    def capture(call: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> Callable[..., Tensor]:  # noqa: ANN401
        made.append(call)
        weights = [each for each in call.parameters() if each.requires_grad]
        given = [each.clone() for each in sample]
        output, gradients = call(*given).detach().clone(), [torch.zeros_like(each) for each in weights]
        passes: list[Tensor] = []

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Tensor) -> Tensor:  # noqa: ANN401
                for held, new in zip(given, inputs, strict=False):
                    held.copy_(new)
                with torch.enable_grad():
                    passes[:] = [call(*given)]
                return output.copy_(passes[0].detach()).detach()

            @staticmethod
            def backward(ctx: Any, *outer: Tensor) -> Any:  # noqa: ANN401
                for held, new in zip(gradients, torch.autograd.grad(passes[0], weights, outer), strict=True):
                    held.copy_(new)
                return (*(None for _ in given), *(held.detach() for held in gradients))

        return lambda *inputs: Replay.apply(*inputs, *weights)

    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr("progdist.training.loop.check_available", lambda: None)
    return made


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"max_grad_norm": 0.01}, {"lr_scheduler": "linear"}])
def test_it_learns_what_it_learns_without(captures: list[nn.Module], changes: dict[str, Any]) -> None:
    plain, _ = trained(replace(GRAPHS, cuda_graphs=False, **changes))
    found, _ = trained(replace(GRAPHS, **changes))
    assert equal(found, plain)
    assert len(captures) == 1


def test_it_goes_on_from_a_checkpoint(captures: list[nn.Module], tmp_path: Path) -> None:
    whole, _ = trained(GRAPHS)
    checkpoints = Checkpoints(tmp_path)
    trained(replace(GRAPHS, updates=GRAPHS.checkpoint_every), checkpoints)
    again, _ = trained(GRAPHS, checkpoints)
    assert equal(again, whole)
