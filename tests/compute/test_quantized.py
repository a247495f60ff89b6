"""Linear layers of 8 and 4 bits: the codes, scales and products of bitsandbytes' own layers."""

import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from progdist import UserError
from progdist._utils.names import Bits
from progdist.compute.placement import at_work, bytes_at_work, empty_copy
from progdist.compute.quantized import QuantizedLinear

BITS: tuple[Bits, ...] = (8, 4)
SHAPES = ((64, 128), (24, 48), (7, 9))  # (outputs, inputs): also such whose rows are no multiple of a block of 64


def layer(shape: tuple[int, int]) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(shape[1], shape[0])


def theirs(one: nn.Linear, bits: Bits) -> Any:  # noqa: ANN401  (bitsandbytes has no types)
    """The layer as diffusers' loader makes it with `BitsAndBytesConfig`, with that quantizer's options."""
    classes: Any = import_module("bitsandbytes.nn")
    if bits == 8:
        made: Any = classes.Linear8bitLt(one.in_features, one.out_features, has_fp16_weights=False, threshold=6.0)
    else:
        made = classes.Linear4bit(one.in_features, one.out_features, compress_statistics=False, quant_type="nf4")
    made.load_state_dict(one.state_dict())
    return made.to("cpu")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_codes_and_scales_are_those_of_the_stock_layer(bits: Bits, shape: tuple[int, int]) -> None:
    ours, stock = QuantizedLinear(layer(shape), bits), theirs(layer(shape), bits)
    scales = stock.weight.SCB if bits == 8 else stock.weight.quant_state.absmax
    assert torch.equal(ours.weight.flatten(), stock.weight.data.flatten())
    assert torch.equal(ours.scales, scales)


def nf4(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight by the definition, with the 16 numbers of Dettmers et al. 2023, appendix E."""
    numbers = torch.tensor(
        [
            *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
            *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
        ]
    )
    pairs = torch.stack([codes >> 4, codes & 15], 1).flatten().long()[: shape[0] * shape[1]]
    blocks = scales.repeat_interleave(64)[: len(pairs)]
    return (numbers[pairs] * blocks).view(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_four_bits_are_those_of_nf4(shape: tuple[int, int]) -> None:
    """Each number the nearest of its block's 16, to within half of the largest gap between them."""
    one = layer(shape)
    ours = QuantizedLinear(one, 4)
    weight = ours.dequantized()
    torch.testing.assert_close(weight, nf4(ours.weight, ours.scales, shape), rtol=0, atol=1e-6)
    bound = 0.152 * ours.scales.repeat_interleave(64)[: weight.numel()].view(shape)
    assert bool(((weight - one.weight).abs() <= bound).all())


@pytest.mark.parametrize("bits", BITS)
def test_products_and_gradients_are_those_of_the_stock_layer(bits: Bits) -> None:
    """In training, where it rounds no inputs on a CPU; of rows of whole blocks, which it takes right there."""
    one = layer(SHAPES[0])
    ours, stock = QuantizedLinear(one, bits), theirs(one, bits).train()
    x = torch.randn(2, 3, one.in_features)
    found = []
    for network in (ours, stock):
        given = x.clone().requires_grad_()
        output = network(given)
        output.square().sum().backward()
        assert given.grad is not None
        found.append((output.detach(), given.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert [name for name, each in ours.named_parameters() if each.requires_grad] == ["bias"]


@pytest.mark.parametrize("bits", BITS)
def test_it_computes_in_the_precision_of_autocast(bits: Bits) -> None:
    ours = QuantizedLinear(layer(SHAPES[0]), bits)
    x = torch.randn(5, SHAPES[0][1], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(x)
    expected = nn.functional.linear(x, ours.dequantized(), ours.bias)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)
    output.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, ours.dequantized().sum(0).expand_as(x), rtol=0.02, atol=0.02)
    assert ours(x.double()).dtype == torch.float64


@pytest.mark.parametrize("bits", BITS)
def test_placement_leaves_codes_and_scales_as_they_are(bits: Bits) -> None:
    network = nn.Sequential(nn.Linear(4, 128), QuantizedLinear(layer(SHAPES[0]), bits), nn.Linear(64, 4))
    quantized = network[1]
    assert isinstance(quantized, QuantizedLinear)
    types = [each.dtype for each in quantized.parameters()]
    with at_work(network, torch.device("cpu"), "bf16"):
        assert [each.dtype for each in quantized.parameters()] == types
        assert network[2].weight.dtype == torch.bfloat16
        held = sum(each.nbytes for each in network.parameters())
    assert bytes_at_work(network, bf16=True) == held
    assert bytes_at_work(network, bf16=False) == sum(each.nbytes for each in network.parameters())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_without_numbers_it_has_the_same_shapes(
    bits: Bits, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, and of fake tensors, where nothing needs the library."""
    real = QuantizedLinear(layer(shape), bits)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with torch.device("meta"):
        empty = QuantizedLinear(nn.Linear(shape[1], shape[0]), bits)
    assert [(each.shape, each.dtype) for each in empty.parameters()] == [
        (each.shape, each.dtype) for each in real.parameters()
    ]
    with FakeTensorMode():
        copy = empty_copy(empty, torch.device("cpu"))
        x = torch.randn(3, shape[1], requires_grad=True)
        copy(x).sum().backward()
    with pytest.raises(UserError, match=r"a base of 8 or 4 bits needs the extra `bnb`"):
        QuantizedLinear(layer(shape), bits)
