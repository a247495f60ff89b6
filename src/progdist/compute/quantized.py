r"""Frozen linear layers whose weights lie in 8 or 4 bits, and are dequantized for each product.

    8 bits    W_ij ~ s_i q_ij / 127,    q_ij a whole number in [-127, 127],    s_i = max_j |W_ij|           (a row)
    4 bits    w_k ~ s_b c(q_k),         c the 16 numbers of NF4 in [-1, 1],    s_b = max |w| of 64 numbers  (a block)

Codes and scales are those of bitsandbytes' own layers (Dettmers et al. 2022, arXiv 2208.07339, and 2023, arXiv
2305.14314), as diffusers loads them with `BitsAndBytesConfig(load_in_8bit=True)`, and `load_in_4bit=True,
bnb_4bit_quant_type="nf4"`. The product is computed in the precision of autocast, or else of its input. Neither weight
nor input is kept for the way back: the weight is dequantized once more.

Those layers are not used themselves: they keep their scales outside of parameters and buffers, repack their weights
while they run on some CPUs, so that a student that trains and a teacher that does not could not share them, round the
inputs to 8 bits, too, and in 4 bits on a CPU take the scales of other blocks where a row is no multiple of 64 numbers.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import linear

from progdist._utils.extras import import_extra
from progdist._utils.names import Bits

BLOCK = 64  # numbers that share a scale in 4 bits, by default of bitsandbytes and diffusers
LARGEST = 127  # code of 8 bits
KIND = "nf4"


class QuantizedLinear(nn.Linear):
    """A linear layer of the same outputs as another one's, up to rounding; its bias is that layer's own.

    `weight` holds the codes: (outputs, inputs) of int8, or two in each of (outputs * inputs / 2,) of uint8; `scales`
    (outputs,) or (blocks,) of float32. None of them is trained.
    """

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        """A copy of a layer; one on the meta device gives layers of the same shapes, without numbers.

        Raises:
            UserError: the extra `bnb` is missing, and there are numbers.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bits: Bits = bits
        codes, scales = _quantized(layer.weight.detach(), bits)
        self.weight, self.scales = (nn.Parameter(each, requires_grad=False) for each in (codes, scales))
        self.bias = layer.bias

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.out_features, self.in_features

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the layer computes with, (outputs, inputs)."""
        return _dequantized(self.weight, self.scales, self.shape, self.bits, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        given = (input.to(dtype), self.weight, self.scales, self.bias, self.shape, self.bits)
        return cast(Tensor, _Product.apply(*given))

    def extra_repr(self) -> str:
        """As of `nn.Linear`, with the bits."""
        return f"{super().extra_repr()}, bits={self.bits}"


class _Product(torch.autograd.Function):
    """X W^T + b, of which X alone has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        input: Tensor,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        shape: tuple[int, int],
        bits: Bits,
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.of = shape, bits
        weight = _dequantized(codes, scales, shape, bits, input.dtype)
        return linear(input, weight, None if bias is None else bias.to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (codes, scales), (shape, bits) = ctx.saved_tensors, ctx.of
        return gradients[0] @ _dequantized(codes, scales, shape, bits, gradients[0].dtype), *[None] * 5


def _quantized(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight (outputs, inputs), as of `QuantizedLinear`."""
    count, rows = weight.numel(), len(weight)
    if weight.is_meta:
        codes, kind = (weight.shape, torch.int8) if bits == 8 else ((math.ceil(count / 2),), torch.uint8)
        scales = rows if bits == 8 else math.ceil(count / BLOCK)
        return weight.new_empty(codes, dtype=kind), weight.new_empty(scales, dtype=torch.float32)
    functional = require_bitsandbytes().functional
    if bits == 8:
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())  # as its layer rounds them first
        return codes, scales
    how = {"blocksize": BLOCK, "quant_type": KIND, "compress_statistics": False}
    codes, state = functional.quantize_4bit(weight.float().contiguous(), **how)
    return codes.flatten(), state.absmax


def _dequantized(codes: Tensor, scales: Tensor, shape: tuple[int, int], bits: Bits, dtype: torch.dtype) -> Tensor:
    """The weight (outputs, inputs) of codes and scales."""
    if bits == 8:
        return codes.to(dtype).mul_(scales.mul(1 / LARGEST)[:, None])
    if isinstance(codes, FakeTensor):
        return codes.new_empty(shape, dtype=dtype)
    known = dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
    flat = (1, math.prod(shape))  # one row: its kernel for CPUs takes blocks to begin with each row
    unpack: Any = torch.ops.bitsandbytes.dequantize_4bit
    return unpack(codes[:, None], scales, BLOCK, KIND, flat, known).view(shape).to(dtype)


def require_bitsandbytes() -> Any:  # noqa: ANN401  (a module)
    """The library that quantizes; a UserError where the extra `bnb` is missing."""
    return import_extra("bitsandbytes", "bnb", "a base of 8 or 4 bits")
