"""Results that depend on one tensor and some numbers, computed once for as long as the tensor lives."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Result = TypeVar("Result")


def once_per_tensor(compute: Callable[..., Result]) -> Callable[..., Result]:
    """`compute(x, *arguments)`, called once for each tensor x and arguments, and again where x was changed in place.

    The results are freed with x. They are shared, so do not change them.
    """
    results: Any = WeakIdKeyDictionary()

    @wraps(compute)
    def once(x: Tensor, *arguments: Any) -> Result:  # noqa: ANN401
        known = results.setdefault(x, {})
        key = (None if x.is_inference() else x._version, arguments)  # inference tensors have no version
        if key not in known:
            known[key] = compute(x, *arguments)
        return known[key]

    return once
