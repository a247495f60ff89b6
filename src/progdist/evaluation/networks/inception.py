r"""Inception-v3 as trained in TensorFlow in 2015, which defines FID and Inception Score.

Szegedy et al. 2015 (arXiv 1512.00567), with the pools of that graph: averages exclude the padding, and the last block
uses a maximum. It takes bytes, resized to 299 x 299 and scaled to (x - 128) / 128, and returns

    pool       the average of the last block, 2,048 numbers
    logits     the pool times the weights of the last layer, without its bias: 1,008
    spatial    the first 7 channels of the 1 x 1 branch of block 6d, 7 x 17 x 17 = 2,023 numbers (guided-diffusion's
               sFID; Nash et al. 2021, arXiv 2103.03841)

Names are those of the published weights (see `weights`), which are a pickle: torch reads only its tensors.
"""

import pickle
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from progdist._utils.errors import UserError
from progdist.evaluation.networks.weights import Weights

Kernel = int | tuple[int, int]
Layer = tuple[str, int, Kernel]  # a convolution's name, channels and kernel; stride 1, and padding that keeps the size

SIZE, SPATIAL = 299, 7


class Convolution(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, *, same: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        return functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Parallel branches and a pool, joined along the channels; a list of layers within a branch is a fork.

    The layers of a fork see the same input and are joined. A convolution of `pooled` channels follows the pool. If
    that is None, as in blocks 6a and 7a, the block halves: every branch ends in stride 2 without padding.
    """

    def __init__(
        self, inputs: int, branches: Sequence[Sequence[Layer | list[Layer]]], pooled: int | None, *, last: bool = False
    ) -> None:
        super().__init__()
        self.chains: list[list[list[str]]] = []
        for branch in branches:
            width, chain = inputs, []
            for step in branch:
                fork = step if isinstance(step, list) else [step]
                halves = pooled is None and step is branch[-1]
                for name, outputs, kernel in fork:
                    self.add_module(name, Convolution(width, outputs, kernel, 2 if halves else 1, same=not halves))
                chain.append([name for name, _, _ in fork])
                width = sum(outputs for _, outputs, _ in fork)
            self.chains.append(chain)
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)  # the last block uses a maximum instead
        self.pool = nn.MaxPool2d(3, 2) if pooled is None else nn.MaxPool2d(3, 1, 1) if last else average
        self.branch_pool = nn.Identity() if pooled is None else Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W), or half of height and width."""
        outputs = []
        for chain in self.chains:
            y = x
            for fork in chain:
                y = torch.cat([self.get_submodule(name)(y) for name in fork], 1)
            outputs.append(y)
        return torch.cat([*outputs, self.branch_pool(self.pool(x))], 1)


def block_5(inputs: int, pooled: int) -> Block:
    """35 x 35: branches of 1 x 1, 5 x 5 and two 3 x 3."""
    double: list[Layer] = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return Block(inputs, [[("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)], double], pooled)


def block_6(c: int) -> Block:
    """17 x 17: branches of 1 x 1, one 7 x 7 and two 7 x 7, in strips."""
    wide, tall = (1, 7), (7, 1)
    single: list[Layer] = [("branch7x7_1", c, 1), ("branch7x7_2", c, wide), ("branch7x7_3", 192, tall)]
    kernels: list[Kernel] = [1, tall, wide, tall, wide]
    widths = [c, c, c, c, 192]
    double: list[Layer] = [(f"branch7x7dbl_{n + 1}", widths[n], kernel) for n, kernel in enumerate(kernels)]
    return Block(768, [[("branch1x1", 192, 1)], single, double], 192)


def block_7(inputs: int, *, last: bool = False) -> Block:
    """8 x 8: branches of 1 x 1, a forked 3 x 3 and two 3 x 3, the second forked."""
    wide, tall = (1, 3), (3, 1)
    fork: list[Layer] = [("branch3x3_2a", 384, wide), ("branch3x3_2b", 384, tall)]
    second: list[Layer] = [("branch3x3dbl_3a", 384, wide), ("branch3x3dbl_3b", 384, tall)]
    double: list[Layer | list[Layer]] = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), second]
    return Block(inputs, [[("branch1x1", 320, 1)], [("branch3x3_1", 384, 1), fork], double], 192, last=last)


class Inception(nn.Module):
    """The network, with the names of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_5(192, 32), block_5(256, 64), block_5(288, 64)
        double: list[Layer] = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        self.Mixed_6a = Block(288, [[("branch3x3", 384, 3)], double], None)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (block_6(c) for c in (128, 160, 160, 192))
        strips: list[Layer] = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)),
                               ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, 3)]  # fmt: skip
        self.Mixed_7a = Block(768, [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)], strips], None)
        self.Mixed_7b, self.Mixed_7c = block_7(1280), block_7(2048, last=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(pool (B, 2048), spatial (B, 2023)) for pixels (B, 3, 299, 299) from 0 to 255."""
        x = (pixels - 128) / 128
        for stem in (self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3):
            x = stem(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c):
            x = block(x)
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :SPATIAL].movedim(1, -1).flatten(1)
        for block in (self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):
            x = block(x)
        return x.mean((2, 3)), spatial

    def logits(self, pool: Tensor) -> Tensor:
        """Logits (B, 1008) for pools (B, 2048), without the bias."""
        return functional.linear(pool, self.fc.weight.to(pool))


def read_inception(weights: Weights) -> Inception:
    """The network with its weights. Raise a UserError if the file is damaged, or for another network."""
    try:
        tensors = torch.load(weights.path, map_location="cpu", weights_only=True)
        network = Inception()
        network.load_state_dict(tensors)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{weights.path} cannot be read as Inception's weights ({reason}): fetch it again") from error
    return network.eval().requires_grad_(False)
