"""Frozen networks at work: held in bf16 where they compute in it, with the same predictions bit for bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from progdist.compute.placement import at_work
from progdist.compute.precision import autocast
from support.latent import dit_transformer
from support.stock import stock_network
from support.text import network as text_network

CPU = torch.device("cpu")
LABELS = {"class_labels": torch.tensor([0, 3])}
XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "UNet2DModel": (lambda: stock_network(classes=11), (2, 1, 8, 8), LABELS),
    "DiT": (dit_transformer, (2, 4, 4, 4), LABELS),
    "SD": (lambda: text_network(16), (2, 4, 4, 4), {"encoder_hidden_states": torch.randn(2, 5, 16)}),
    "SDXL": (
        lambda: text_network(16, **XL),
        (2, 4, 4, 4),
        {
            "encoder_hidden_states": torch.randn(2, 5, 16),
            "added_cond_kwargs": {"text_embeds": torch.randn(2, 16), "time_ids": torch.ones(2, 6)},
        },
    ),
}


def predictions(network: Any, z: Tensor, condition: dict[str, Any]) -> Tensor:  # noqa: ANN401
    with torch.no_grad(), autocast(CPU, "bf16"):
        return network(z, torch.tensor([3.0, 700.0]), **condition).sample


@pytest.mark.parametrize("kind", NETWORKS)
def test_predictions_are_the_same_bit_for_bit(kind: str) -> None:
    build, shape, condition = NETWORKS[kind]
    network, z = build(), torch.randn(shape)
    before, whole = copy.deepcopy(network.state_dict()), predictions(network, z, condition)
    with at_work(network, CPU, "bf16"):
        assert torch.equal(predictions(network, z, condition), whole)
        held = sum(each.nbytes for each in network.parameters())
    rounded = [each for each in network.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    count = sum(each.numel() for layer in rounded for each in layer.parameters(recurse=False))
    first = next(network.parameters()).numel()
    assert held == sum(each.nbytes for each in network.parameters()) - 2 * (count - first)
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)


def test_weights_rest_again_whatever_happens() -> None:
    network = nn.Linear(3, 3)
    resting = [each.data_ptr() for each in network.parameters()]

    def broken() -> None:
        with at_work(network, CPU, "bf16"):
            assert network.bias.dtype == torch.bfloat16
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert [each.data_ptr() for each in network.parameters()] == resting
    with at_work(network, CPU, "float32"):
        assert [each.data_ptr() for each in network.parameters()] == resting
