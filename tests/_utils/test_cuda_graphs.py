"""CUDA graphs: which calls are replayed, and that a replayed network computes and learns what it does without."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from progdist._utils import cuda_graphs
from progdist._utils.cuda_graphs import PLAIN_CALLS, Replayed, accelerated, replayed
from progdist.models.unet import unet


class Network(nn.Module):
    """y = w z + t, which counts its calls."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0, device=device))
        self.dropout = nn.Dropout(0.0)
        self.calls = 0

    def forward(self, z: Tensor, timestep: Tensor, shift: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.dropout(self.weight * z + timestep[:, None] + (0 if shift is None else shift))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Networks on the CPU are taken for ones on a GPU, and what is recorded writes each output over the last."""
    made: list[Any] = []

    def record(network: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> Callable[..., Tensor]:  # noqa: ANN401
        held = torch.empty(0)
        made.append(sample)

        def replay(*given: Tensor) -> Tensor:
            nonlocal held
            output = network(*given)
            if output.requires_grad:
                return output
            held = held.resize_(output.shape).copy_(output)
            return held

        return replay

    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    yield made


def z_and_t(rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3), torch.rand(rows)


def test_a_call_is_recorded_once_it_is_made_often(recorded: list[Any]) -> None:
    network = Replayed(Network())
    with torch.no_grad():
        for calls in range(1, PLAIN_CALLS + 4):
            given = z_and_t()
            assert torch.equal(network(*given), 2 * given[0] + given[1][:, None])
            assert len(recorded) == (calls > PLAIN_CALLS)
        for _ in range(PLAIN_CALLS + 1):
            z, t = z_and_t()
            torch.testing.assert_close(network(z, timestep=t, shift=z), 3 * z + t[:, None])  # of another kind
    assert [len(sample) for sample in recorded] == [2, 3]


def test_an_output_outlives_the_next_call(recorded: list[Any]) -> None:
    network, (z, t) = Replayed(Network()), z_and_t()
    with torch.no_grad():
        outputs = [network(z + number, t) for number in range(PLAIN_CALLS + 3)]
    for number, output in enumerate(outputs):
        torch.testing.assert_close(output, 2 * (z + number) + t[:, None])


def test_a_second_call_before_the_backward_pass_is_made_as_usual(recorded: list[Any]) -> None:
    network = Replayed(Network())
    replays: list[bool] = []
    for _ in range(PLAIN_CALLS + 3):
        network.zero_grad()
        (z, t), (other, s) = z_and_t(), z_and_t()
        first = network(z, t)
        replays.append(network._awaits_backward)
        (first.sum() + network(other, s).sum()).backward()
        assert not network._awaits_backward
        torch.testing.assert_close(next(network.parameters()).grad, z.sum(0) + other.sum(0))
    assert replays[-1] and not replays[0]


def test_what_a_graph_would_change_is_not_replayed(recorded: list[Any]) -> None:
    z, t = z_and_t()
    random, normed = Network().train(), nn.Sequential(nn.BatchNorm1d(3)).train()
    random.dropout.p = 0.5
    for network, given in ((random, (z, t)), (normed, (z,))):
        for _ in range(2 * PLAIN_CALLS):
            Replayed(network)(*given)
    plain = Replayed(Network())
    for _ in range(2 * PLAIN_CALLS):
        plain(z.clone().requires_grad_(), t)
        plain(z, t, shift=None)  # an argument that is no tensor
    assert not recorded


def test_moved_weights_are_recorded_anew(recorded: list[Any]) -> None:
    network, (z, t) = Replayed(Network()), z_and_t()
    with torch.no_grad():
        for _ in range(PLAIN_CALLS + 2):
            network(z, t)
        next(network.parameters()).data = torch.full((3,), 5.0)
        for _ in range(PLAIN_CALLS + 2):
            assert torch.equal(network(z, t), 5 * z + t[:, None])
    assert len(recorded) == 2


def test_a_network_that_cannot_be_recorded_runs_without(recorded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **options: Any) -> None:  # noqa: ANN401
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    network, (z, t) = Replayed(Network()), z_and_t()
    with torch.no_grad(), pytest.warns(UserWarning, match="Network cannot be recorded as a CUDA graph") as warned:
        for _ in range(PLAIN_CALLS + 5):
            assert torch.equal(network(z, t), 2 * z + t[:, None])
    assert len(warned) == 1


@pytest.mark.parametrize("learning", [False, True])
def test_a_replay_that_differs_from_the_call_is_not_used(
    recorded: list[Any], monkeypatch: pytest.MonkeyPatch, learning: bool
) -> None:
    """Of the output, or of the gradients alone."""

    def wrong(network: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> Callable[..., Tensor]:  # noqa: ANN401
        weight = next(network.parameters())
        return lambda z, t: network(z, t) + (weight - weight.detach()) * 0.2 if learning else network(1.1 * z, t)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", wrong)
    network, (z, t) = Replayed(Network()), z_and_t()
    with torch.set_grad_enabled(learning), pytest.warns(UserWarning, match="a replay differs from the call"):
        for _ in range(PLAIN_CALLS + 5):
            torch.testing.assert_close(network(z, t), 2 * z + t[:, None])


def test_where_it_does_not_pay_a_network_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert replayed(network) is network
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    wrapped = replayed(network)
    assert isinstance(wrapped, Replayed)
    assert replayed(wrapped) is wrapped
    assert accelerated(network, compiled=False, graphs=False) is network
    monkeypatch.setattr(cuda_graphs, "MOST_PARAMETERS", 2)
    assert replayed(network) is network


@pytest.fixture
def visible_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA, which is hidden from other tests, as torch's own functions ask for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.cuda
@pytest.mark.usefixtures("visible_cuda")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("classes", [0, 3])
def test_on_cuda_it_computes_and_learns_what_it_does_without(bf16: bool, classes: int) -> None:
    torch.manual_seed(0)
    plain = cast(nn.Module, unet(image=(1, 8, 8), width=8, groups=4, multipliers=(1, 2), classes=classes))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    plain = plain.to("cuda")
    graphed = copy.deepcopy(plain)
    fast = Replayed(graphed)
    optimizers = [torch.optim.AdamW(each.parameters(), 1e-3, fused=True) for each in (plain, graphed)]
    for _ in range(PLAIN_CALLS + 5):
        z, t = torch.randn(4, 1, 8, 8).cuda(), torch.rand(4).cuda()
        told = {"class_labels": torch.arange(4).cuda() % classes} if classes else {}
        losses = []
        for network, optimizer in zip((plain, fast), optimizers, strict=True):
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                loss = network(z, t, **told).sample.float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=2e-2 if bf16 else 1e-4)
    assert all(fast._graphs.values())
    for one, other in zip(plain.parameters(), graphed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=5e-3 if bf16 else 1e-4)


@pytest.mark.cuda
@pytest.mark.usefixtures("visible_cuda")
def test_on_cuda_a_network_that_waits_for_the_device_runs_without() -> None:
    class Waits(Network):
        def forward(self, z: Tensor, timestep: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(z, timestep) * (1 if timestep.sum().item() > -1 else 0)

    network: nn.Module = Replayed(Waits("cuda"))
    z, t = (each.cuda() for each in z_and_t())
    with torch.no_grad(), pytest.warns(UserWarning, match="cannot be recorded"):
        for _ in range(PLAIN_CALLS + 3):
            torch.testing.assert_close(network(z, t), 2 * z + t[:, None])
