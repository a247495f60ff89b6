"""CUDA graphs: which calls are replayed, and that a captured network computes and learns what it does without."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.compute.cuda_graphs import CALLS_BEFORE, CudaGraphs, accelerated, check_available
from progdist.models.unet import unet
from progdist.training.config import TrainConfig
from progdist.training.loop import check_processes
from support.commands import call, refused


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
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Networks on the CPU are taken for ones on a GPU, and what is captured writes each output over the last."""
    made: list[Any] = []

    def capture(network: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> Callable[..., Tensor]:  # noqa: ANN401
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
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    yield made


def z_and_t(rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3), torch.rand(rows)


def test_a_call_is_captured_once_it_is_made_often(captured: list[Any]) -> None:
    network = CudaGraphs(Network())
    with torch.no_grad():
        for calls in range(1, CALLS_BEFORE + 4):
            given = z_and_t()
            assert torch.equal(network(*given), 2 * given[0] + given[1][:, None])
            assert len(captured) == (calls > CALLS_BEFORE)
        for _ in range(CALLS_BEFORE + 1):
            z, t = z_and_t()
            torch.testing.assert_close(network(z, timestep=t, shift=z), 3 * z + t[:, None])  # of another kind
    assert [len(sample) for sample in captured] == [2, 3]


def test_an_output_outlives_the_next_call(captured: list[Any]) -> None:
    network, (z, t) = CudaGraphs(Network()), z_and_t()
    with torch.no_grad():
        outputs = [network(z + number, t) for number in range(CALLS_BEFORE + 3)]
    for number, output in enumerate(outputs):
        torch.testing.assert_close(output, 2 * (z + number) + t[:, None])


def test_a_second_call_before_the_backward_pass_is_made_as_usual(captured: list[Any]) -> None:
    network = CudaGraphs(Network())
    replays: list[bool] = []
    for _ in range(CALLS_BEFORE + 3):
        network.zero_grad()
        (z, t), (other, s) = z_and_t(), z_and_t()
        first = network(z, t)
        replays.append(network._awaiting() is not None)
        (first.sum() + network(other, s).sum()).backward()
        assert network._awaiting() is None
        torch.testing.assert_close(next(network.parameters()).grad, z.sum(0) + other.sum(0))
    assert replays[-1]
    assert not replays[0]


def test_an_output_that_is_dropped_is_not_awaited(captured: list[Any]) -> None:
    network, (z, t) = CudaGraphs(Network()), z_and_t()
    for _ in range(CALLS_BEFORE + 3):
        network(z, t)
    assert network._awaiting() is None


def test_what_a_graph_would_change_is_not_replayed(captured: list[Any]) -> None:
    z, t = z_and_t()
    random, normed = Network().train(), nn.Sequential(nn.BatchNorm1d(3)).train()
    random.dropout.p = 0.5
    for network, given in ((random, (z, t)), (normed, (z,))):
        graphs = CudaGraphs(network)
        for _ in range(2 * CALLS_BEFORE):
            graphs(*given)
    plain = CudaGraphs(Network())
    for _ in range(2 * CALLS_BEFORE):
        plain(z.clone().requires_grad_(), t)
    assert not captured


def test_tensors_are_found_wherever_they_are_among_the_arguments(captured: list[Any]) -> None:
    class Nested(nn.Module):
        def forward(self, z: Tensor, timestep: Tensor, told: Any = None, double: bool = False) -> Any:  # noqa: ANN401
            return (1 + double) * (2 * z + timestep[:, None] + told["shift"][1])

    network, z = CudaGraphs(Nested()), torch.randn(2, 3)
    with torch.no_grad():
        for _ in range(CALLS_BEFORE + 3):
            for double in (False, True):
                t, shift = torch.rand(2), torch.randn(2, 3)
                found = network(z, t, told={"shift": (None, shift)}, double=double)
                torch.testing.assert_close(found, (1 + double) * (2 * z + t[:, None] + shift))
    assert [len(sample) for sample in captured] == [3, 3]


def test_a_network_in_training_is_captured_apart(captured: list[Any]) -> None:
    network, (z, t) = CudaGraphs(Network()), z_and_t()
    with torch.no_grad():
        for training in (False, True):
            network.train(training)
            for _ in range(CALLS_BEFORE + 2):
                network(z, t)
    assert len(captured) == 2


def test_moved_buffers_are_captured_anew(captured: list[Any]) -> None:
    network, (z, t) = CudaGraphs(Network()), z_and_t()
    network.network.register_buffer("table", torch.ones(3))
    with torch.no_grad():
        for number in range(2):
            network.network.register_buffer("table", torch.full((3,), float(number)))
            for _ in range(CALLS_BEFORE + 2):
                network(z, t)
    assert len(captured) == 2


def test_moved_weights_are_captured_anew(captured: list[Any]) -> None:
    network, (z, t) = CudaGraphs(Network()), z_and_t()
    with torch.no_grad():
        for _ in range(CALLS_BEFORE + 2):
            network(z, t)
        next(network.parameters()).data = torch.full((3,), 5.0)
        for _ in range(CALLS_BEFORE + 2):
            assert torch.equal(network(z, t), 5 * z + t[:, None])
    assert len(captured) == 2


def test_a_network_that_cannot_be_captured_is_refused(captured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **options: Any) -> None:  # noqa: ANN401
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    network, (z, t) = CudaGraphs(Network()), z_and_t()
    with torch.no_grad():
        for _ in range(CALLS_BEFORE):
            network(z, t)
        with pytest.raises(UserError, match=r"Network cannot be captured .*: set cuda_graphs to false"):
            network(z, t)


@pytest.mark.parametrize("learning", [False, True])
def test_a_replay_that_differs_from_the_call_is_refused(
    captured: list[Any], monkeypatch: pytest.MonkeyPatch, learning: bool
) -> None:
    """In the output, or in the gradients alone."""

    def wrong(network: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> Callable[..., Tensor]:  # noqa: ANN401
        weight = next(network.parameters())
        return lambda z, t: network(z, t) + (weight - weight.detach()) * 5 if learning else network(1.1 * z, t)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", wrong)
    network, (z, t) = CudaGraphs(Network()), z_and_t()
    with torch.set_grad_enabled(learning):
        for _ in range(CALLS_BEFORE):
            network(z, t)
        with pytest.raises(UserError, match="a replay differs from the call"):
            network(z, t)


def test_rounding_is_no_difference(captured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a key's bias is 0 but for rounding, which is another in each pass."""
    torch.manual_seed(0)
    network = cast(nn.Module, unet(image=(1, 8, 8), width=8, groups=4, multipliers=(1, 2), attention=(8,)))

    def close(network: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> Callable[..., Any]:  # noqa: ANN401
        return lambda z, t: network(z * (1 + 1e-6), t)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", close)
    graphs, z, t = CudaGraphs(network), torch.randn(2, 1, 8, 8), torch.rand(2)
    for _ in range(CALLS_BEFORE + 1):
        graphs(z, t)
    assert len(graphs._graphs) == 1


def test_who_asks_for_graphs_gets_them() -> None:
    network = Network()
    assert accelerated(network, compiled=False, graphs=False) is network
    graphs = accelerated(network, compiled=False, graphs=True)
    assert isinstance(graphs, CudaGraphs)
    assert accelerated(graphs, compiled=False, graphs=True) is graphs
    with pytest.raises(UserError, match="requires a CUDA device"):
        check_available()


@pytest.mark.parametrize("other", ["compile", "gradient_checkpointing", "gradient_accumulation_steps"])
def test_what_excludes_graphs(other: str) -> None:
    given: Any = {other: 2 if other.endswith("steps") else True}
    with pytest.raises(UserError, match=f"cuda_graphs and {other} exclude each other"):
        TrainConfig(1, 4, 0.1, cuda_graphs=True, **given)


def test_graphs_are_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progdist.training.loop.check_available", lambda: None)
    check_processes(TrainConfig(1, 4, 0.1, cuda_graphs=True), 1, sharded=False)
    with pytest.raises(UserError, match="cuda_graphs requires a single process"):
        check_processes(TrainConfig(1, 4, 0.1, cuda_graphs=True), 2, sharded=False)


def test_graphs_are_refused_before_anything_is_trained(tiny_recipe: Path, tmp_path: Path) -> None:
    for section in ("distill", "evaluate"):
        out = tmp_path / section
        result = call("run", tiny_recipe, "--out", out, "--set", f"{section}.cuda_graphs=true")
        refused(result, "cuda_graphs requires a CUDA device")
        assert not (out / "teacher").exists()


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
    fast = CudaGraphs(graphed)
    optimizers = [torch.optim.AdamW(each.parameters(), 1e-3, fused=True) for each in (plain, graphed)]
    for _ in range(CALLS_BEFORE + 5):
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
def test_on_cuda_a_network_that_waits_for_the_device_is_refused() -> None:
    class Waits(Network):
        def forward(self, z: Tensor, timestep: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(z, timestep) * (1 if timestep.sum().item() > -1 else 0)

    network: nn.Module = CudaGraphs(Waits("cuda"))
    z, t = (each.cuda() for each in z_and_t())
    with torch.no_grad(), pytest.raises(UserError, match="cannot be captured"):
        for _ in range(CALLS_BEFORE + 3):
            network(z, t)
