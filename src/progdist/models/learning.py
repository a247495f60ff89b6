"""Learn how a pipeline calls its network by comparing calls (the kinds of arguments: `progdist.models.calls`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.models.calls import (
    LAYOUTS,
    OUTPUTS,
    Call,
    Constant,
    Latents,
    Pieces,
    Repeated,
    Rows,
    Time,
    returned,
)
from progdist.models.watching import Step

CLOSE = 1e-5  # relative to the largest number: the largest difference between tensors that count as equal


def learn_call(steps: Sequence[Step], other: Mapping[str, Any], prompts: int, others: int) -> Call:
    """Learn the call from several steps of one run, and the first call of another with a different number of prompts.

    Raises:
        UserError: the latents, the time or the output cannot be identified, or anything else changes between steps.
    """
    if odd := [len(step.calls) for step in steps if len(step.calls) != 1]:
        raise UserError(f"it calls its network {odd[0]} times per step without guidance, expected once")
    first = steps[0].calls[0].arguments
    z_path, latents = _find_latents(steps)
    time_path, time = _find_time(steps, z_path)
    known = {z_path: latents, time_path: time}
    arguments = _template(first, other, (prompts, others), "", known)
    return Call(_with_masks(arguments, [first, other]), _find_output(steps))


def _with_masks(arguments: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments, with masks linked to the rows that they mask, so that an omitted mask is known, too."""
    call = next((call for call in calls if all(_at(call, name) is not None for name in arguments)), calls[0])
    shapes = {name: value.shape for name, value in call.items() if isinstance(value, Tensor)}
    changed = dict(arguments)
    for name, leaf in arguments.items():
        if isinstance(leaf, Rows) and not leaf.dtype.is_floating_point and len(shapes.get(name, ())) == 2:
            masked = [each for each, shape in shapes.items() if len(shape) == 3 and shape[:2] == shapes[name]]
            if masked:
                near = [each for each in masked if name.startswith(each)] or masked
                changed[name] = replace(leaf, beside=near[0])
    return changed


def same(value: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether two values are equal, tensors within rounding."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape == other.shape and value.dtype == other.dtype and difference(value, other) <= CLOSE
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(same(value[name], other[name]) for name in value)
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(same, value, other))
    return type(value) is type(other) and bool(value == other)


def difference(value: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors of one shape, over the largest number of the second."""
    if not value.numel():
        return 0.0
    largest = float(other.double().abs().max())
    return float((value.double() - other.double()).abs().max()) / (largest or 1.0)


def values(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Every value in a call's arguments, with its path; lists of tensors also as a whole."""
    if isinstance(tree, Mapping):
        for name, part in tree.items():
            yield from values(part, f"{path}.{name}" if path else str(name))
        return
    yield path, tree
    if isinstance(tree, list | tuple):
        for number, part in enumerate(tree):
            yield from values(part, f"{path}.{number}")


def _find_latents(steps: Sequence[Step]) -> tuple[str, Latents]:
    found = [
        (path, latents)
        for path, value in values(steps[0].calls[0].arguments)
        for latents in (*map(Latents, LAYOUTS), _first_channels(value, steps[0].sample))
        if latents and all(_is_z(_at(step.calls[0].arguments, path), latents, step) for step in steps)
    ]
    if len(found) != 1:
        shapes = _shapes(steps[0].calls[0].arguments)
        what = f"{len(found)} times" if found else "nowhere"
        raise UserError(
            f"the scheduler's latents {tuple(steps[0].sample.shape)} occur {what} in the call of the network "
            f"({shapes}), expected once: a network that takes more than latents cannot be distilled"
        )
    return found[0]


def _first_channels(value: Any, sample: Tensor) -> Latents | None:  # noqa: ANN401
    """The latents as the first channels of an argument, whose other channels are the same for all examples."""
    channels = sample.shape[1] if sample.ndim > 1 else 0
    if not isinstance(value, Tensor) or value.ndim != sample.ndim or value.ndim < 2 or value.shape[1] <= channels:
        return None
    rest = value[:, channels:]
    return Latents("z", rest[:1].clone()) if same(rest, rest[:1].expand_as(rest)) else None


def _is_z(value: Any, latents: Latents, step: Step) -> bool:  # noqa: ANN401
    """Whether an argument is the scheduler's sample, unchanged or scaled by `scale_model_input`."""
    try:
        if latents.value is not None and not same(value[:1, step.sample.shape[1] :], latents.value):
            return False
        z = latents.read(value)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    if not isinstance(z, Tensor) or z.shape != step.sample.shape or not z.is_floating_point():
        return False
    z, sample = z.double().flatten(), step.sample.double().flatten()
    factor = float(z @ sample) / float(sample @ sample)
    return factor > 0 and difference(z, factor * sample) <= CLOSE


def _find_time(steps: Sequence[Step], z_path: str) -> tuple[str, Time]:
    calls = [step.calls[0].arguments for step in steps]
    changing = {
        path: value
        for path, value in values(calls[0])
        if not (path == z_path or path.startswith(f"{z_path}."))
        and not isinstance(value, list | tuple)
        and not all(same(_at(call, path), value) for call in calls[1:])
    }
    if len(changing) != 1:
        names = ", ".join(changing) or "nothing"
        raise UserError(f"its network's arguments {names} change from step to step, expected only the time to change")
    ((path, value),) = changing.items()
    seen = [_numbers(_at(call, path)) for call in calls]
    if any(not bool((each == each[0]).all()) for each in seen):
        raise UserError(f"{path} differs within a batch, expected one time for all examples")
    times, timesteps = [float(each[0]) for each in seen], [step.timestep for step in steps]
    slope = (times[-1] - times[0]) / (timesteps[-1] - timesteps[0])
    offset = times[0] - slope * timesteps[0]
    slope, offset = _rounded(slope), _rounded(offset, largest=max(map(abs, times)))
    apart = max(abs(slope * t + offset - seen) for t, seen in zip(timesteps, times, strict=True))
    if apart > 1e-3 * max(map(abs, times)):
        raise UserError(f"{path} is not an affine function of the scheduler's timestep ({timesteps} gave {times})")
    axes = tuple(value.shape[1:]) if isinstance(value, Tensor) else ()
    return path, Time(slope, offset, axes)


def _rounded(number: float, largest: float = 0.0) -> float:
    """Remove float32 rounding from a number; 0 if it is nothing but rounding."""
    return 0.0 if abs(number) < 1e-6 * largest else float(f"{number:.5g}")


def _numbers(value: Any) -> Tensor:  # noqa: ANN401
    return torch.as_tensor(value, dtype=torch.float64).flatten()


def _find_output(steps: Sequence[Step]) -> str:
    for name, form in OUTPUTS.items():
        if all(_reads(form.read, step) for step in steps):
            return name
    output = returned(steps[0].calls[0].output)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UserError(
        f"its network's output ({shape}) becomes {tuple(steps[0].model_output.shape)} for the scheduler in an unknown "
        "way, expected the output itself, negated, or its first channels"
    )


def _reads(read: Any, step: Step) -> bool:  # noqa: ANN401
    try:
        output = read(returned(step.calls[0].output))
        return output.shape == step.model_output.shape and difference(output, step.model_output) <= CLOSE
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False


def _template(
    value: Any,  # noqa: ANN401
    other: Any,  # noqa: ANN401
    counts: tuple[int, int],
    path: str,
    known: Mapping[str, Any],
) -> Any:  # noqa: ANN401
    """The leaves of a value of one call, compared with a call for another number of prompts."""
    if path in known:
        return known[path]
    if isinstance(value, Mapping):
        return {
            name: _template(part, other[name], counts, f"{path}.{name}" if path else str(name), known)
            for name, part in value.items()
        }
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return _of_tensors(value, other, counts, path)
    if isinstance(value, Tensor) and other is None and value.shape[:1] == counts[:1]:
        return Rows(path, value.dtype)
    if isinstance(other, Tensor) and value is None and other.shape[:1] == counts[1:]:
        return Rows(path, other.dtype)
    if isinstance(value, list | tuple) and isinstance(other, list | tuple) and value:
        return _of_lists(value, other, counts, path, known)
    if not same(value, other):
        raise UserError(f"{path} is {str(value)[:50]} for {counts[0]} prompts and {str(other)[:50]} for {counts[1]}")
    return Constant(value)


def _of_tensors(value: Tensor, other: Tensor, counts: tuple[int, int], path: str) -> Rows | Constant:
    repeats = [len(each) / count for each, count in zip((value, other), counts, strict=True) if each.ndim]
    if len(repeats) == 2 and repeats[0] == repeats[1] and repeats[0].is_integer():
        return Rows(path, value.dtype, int(repeats[0]))
    if same(value, other):
        return Constant(value.detach().clone())
    raise UserError(
        f"{path} is {tuple(value.shape)} for {counts[0]} prompts and {tuple(other.shape)} for {counts[1]}, expected "
        "rows for each, or the same for all"
    )


def _of_lists(
    value: Sequence[Any], other: Sequence[Any], counts: tuple[int, int], path: str, known: Mapping[str, Any]
) -> Any:  # noqa: ANN401
    if (len(value), len(other)) == counts:
        every = [*value, *other]
        if all(isinstance(each, Tensor) for each in every):
            return Pieces(path, value[0].dtype)
        if all(same(each, every[0]) for each in every):
            return Repeated(value[0])
        if all(isinstance(each, int | float) for each in every):
            return Rows(path, torch.as_tensor(value).dtype, listed=True)
    if len(value) == len(other):
        pairs = enumerate(zip(value, other, strict=True))
        parts = [_template(part, each, counts, f"{path}.{number}", known) for number, (part, each) in pairs]
        return tuple(parts) if isinstance(value, tuple) else parts
    raise UserError(
        f"{path} has {len(value)} items for {counts[0]} prompts and {len(other)} for {counts[1]}, expected one each"
    )


def _at(tree: Any, path: str) -> Any:  # noqa: ANN401
    """The value at a path; None if there is none."""
    for name in path.split("."):
        if isinstance(tree, Mapping):
            tree = tree.get(name)
        elif isinstance(tree, list | tuple) and name.isdigit() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return None
    return tree


def _shapes(arguments: Mapping[str, Any]) -> str:
    """The tensors in a call's arguments, for users."""
    found = [f"{path} {tuple(value.shape)}" for path, value in values(arguments) if isinstance(value, Tensor)]
    return ", ".join(found)[:300]
