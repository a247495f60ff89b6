"""Results are computed once for each tensor, and again where it was changed."""

import gc

import torch
from torch import Tensor

from progdist._utils.memoize import once_per_tensor


def test_computed_once_for_each_tensor_and_arguments() -> None:
    asked: list[tuple[float, int]] = []

    @once_per_tensor
    def total(x: Tensor, power: int) -> float:
        asked.append((float(x[0]), power))
        return float(x.pow(power).sum())

    x, y = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
    assert [total(x, 2), total(x, 2), total(x, 3), total(y, 2), total(x, 2)] == [5.0, 5.0, 9.0, 5.0, 5.0]
    assert asked == [(1.0, 2), (1.0, 3), (1.0, 2)]  # y equals x, and is another tensor
    x[0] = 3.0
    assert total(x, 2) == 13.0
    with torch.inference_mode():
        assert [total(torch.ones(2), 2), total(torch.ones(3), 2)] == [2.0, 3.0]


def test_results_are_freed_with_the_tensor() -> None:
    class Kept:
        living = 0

        def __init__(self) -> None:
            Kept.living += 1

        def __del__(self) -> None:
            Kept.living -= 1

    made = once_per_tensor(lambda x: Kept())
    x = torch.zeros(1)
    made(x)
    assert Kept.living == 1
    del x
    gc.collect()
    assert Kept.living == 0
