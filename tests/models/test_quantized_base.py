"""Which layers of a base are quantized, against what diffusers' own helper replaces, and what the base holds."""

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear
from diffusers.quantizers.quantization_config import BitsAndBytesConfig
from torch import nn

import tiny_pipelines
from progdist import UserError
from progdist._utils.names import Bits
from progdist.compute.placement import bytes_at_work, empty_copy
from progdist.compute.quantized import QuantizedLinear
from progdist.models.components import PipelineFolder
from progdist.models.quantized_base import check_quantizable, quantized_base, quantized_layers
from progdist.training.lora import adapter_weights, add_lora, with_adapter
from support.text import network
from support.training import storages

PIPELINES = ("StableDiffusionPipeline", "FluxPipeline", "WanPipeline", "PixArtSigmaPipeline")
BITS: tuple[Bits, ...] = (8, 4)


@pytest.fixture
def sd_network() -> nn.Module:
    return network(16)


def network_of(name: str, folder: Path) -> nn.Module:
    """A tiny pipeline's network, without numbers."""
    return PipelineFolder.read(tiny_pipelines.build(name, folder / name)).empty_network()


def stock_layers(network: nn.Module) -> set[str]:
    """The names of what diffusers replaces when it loads a network in 8 bits."""
    config = BitsAndBytesConfig(load_in_8bit=True)
    kept = list(getattr(network, "_keep_in_fp32_modules", None) or [])
    made: Any = replace_with_bnb_linear(copy.deepcopy(network), kept, quantization_config=config)
    return {name for name, module in made.named_modules() if type(module).__name__ == "Linear8bitLt"}


@pytest.mark.parametrize("name", PIPELINES)
def test_layers_are_the_stock_ones_but_for_embeddings_and_ends(name: str, tmp_path: Path) -> None:
    one = network_of(name, tmp_path)
    ours, stock = set(quantized_layers(one)), stock_layers(one)
    assert ours
    assert ours < stock
    for left in stock - ours:
        in_blocks = any(part.isdigit() for part in left.split("."))
        assert "time_emb_proj" in left or not in_blocks or "embed" in left, left


def test_the_modules_that_diffusers_keeps_in_float32_are_kept(tmp_path: Path) -> None:
    one = network_of("StableDiffusionPipeline", tmp_path)
    first = quantized_layers(one)[0]
    cast(Any, one)._keep_in_fp32_modules = [first.split(".")[-1]]
    assert first not in quantized_layers(one)
    assert set(quantized_layers(one)) <= stock_layers(one)


@pytest.mark.parametrize("bits", BITS)
def test_one_base_is_shared_by_all_adapters(bits: Bits, sd_network: nn.Module) -> None:
    """The bytes of teacher and student: one base, whose layers in full are not held, and two sets of adapters."""
    base = quantized_base(sd_network, bits)
    assert quantized_base(sd_network, bits) is base
    student = add_lora(base, 2, seed=0)
    teacher = with_adapter(base, adapter_weights(student))
    adapters = sum(each.nbytes for each in student.parameters() if each.requires_grad)
    assert storages(teacher, student) == storages(base) + 2 * adapters
    names = quantized_layers(sd_network)
    layers: list[tuple[Any, nn.Module]]
    layers = [(sd_network.get_submodule(name), base.get_submodule(name)) for name in names]
    assert all(isinstance(layer, QuantizedLinear) for _, layer in layers)
    dropped = sum(one.weight.nbytes for one, _ in layers)
    codes = sum(one.weight.numel() * bits // 8 for one, _ in layers)
    scales = sum(len(one.weight) if bits == 8 else -(-one.weight.numel() // 64) for one, _ in layers)
    assert storages(base) == storages(sd_network) - dropped + codes + 4 * scales
    kept = {name for name, _ in sd_network.named_parameters()} - {f"{name}.weight" for name in names}
    assert all(base.get_parameter(name) is sd_network.get_parameter(name) for name in kept)


@pytest.mark.parametrize("bits", BITS)
def test_the_bytes_are_known_without_numbers(bits: Bits, sd_network: nn.Module) -> None:
    empty = quantized_base(empty_copy(sd_network, torch.device("meta")), bits)
    for bf16 in (False, True):
        assert bytes_at_work(empty, bf16) == bytes_at_work(quantized_base(sd_network, bits), bf16)


def test_adapters_learn_on_it(sd_network: nn.Module) -> None:
    """An update changes them and nothing else; the network is nearer to itself in 8 bits than in 4."""
    z, timestep, words = torch.randn(2, 4, 4, 4), torch.tensor([10, 600]), torch.randn(2, 12, 16)
    errors = []
    with torch.no_grad():
        full = sd_network(z, timestep, words).sample
        for bits in BITS:
            output = quantized_base(sd_network, bits)(z, timestep, words).sample
            errors.append(float((output - full).std() / full.std()))
    assert 0 < errors[0] < 0.02 < errors[1] < 0.3
    student = add_lora(quantized_base(sd_network, 4), 2, seed=0)
    before = {name: each.clone() for name, each in student.named_parameters()}
    trained = [each for each in student.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    student(z, timestep, words).sample.square().mean().backward()
    optimizer.step()
    changed = {name for name, each in student.named_parameters() if not torch.equal(each, before[name])}
    assert changed
    assert all("lora_B" in name for name in changed)  # the gradient of A is B's, and B begins at 0


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="base_bits requires linear layers in blocks, and a Linear has none"):
        check_quantizable(nn.Linear(3, 3))
