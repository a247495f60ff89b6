"""How a stock pipeline calls its network: learned from the arguments of two calls, and repeated for any batch.

A call is a tree of arguments, by name, whose leaves say where each comes from:

    Latents     z, as the pipeline passes it
    Time        a timestep of the scheduler, through an affine function
    Guidance    the guidance scale, times a factor
    Rows        a row per prompt: embeddings, masks, sizes, or numbers
    Pieces      a list with a tensor per prompt, of different lengths
    Repeated    a list with the same value for each example
    Constant    the same for all: rotary embeddings, image ids, None, flags

Two calls with different batch sizes, B and B', are compared: an argument with k B rows in one and k B' in the other
belongs to the prompts; one that is equal in both is a constant. One of OUTPUTS turns the output into what the
scheduler receives.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.data.embeddings import padded

LENGTHS = ".lengths"  # suffix of the name for the lengths of pieces


@dataclass(frozen=True)
class Form:
    """A form of latents or of an output: how to make it from z (B, ...), and how to read it back."""

    make: Callable[[Tensor], Any]
    read: Callable[[Any], Tensor]


LAYOUTS: dict[str, Form] = {
    "z": Form(lambda z: z, lambda value: value),
    "a list of z, with an axis of one frame": Form(
        lambda z: list(z.unsqueeze(2).unbind(0)), lambda value: torch.stack(value).squeeze(2)
    ),
    "a list of z": Form(lambda z: list(z.unbind(0)), lambda value: torch.stack(value)),
}
"""Forms in which a network takes latents."""

OUTPUTS: dict[str, Form] = {
    "as it is": Form(lambda z: z, lambda output: output),
    "negated": Form(lambda z: -z, lambda output: -output),
    "without its second half of channels": Form(
        lambda z: torch.cat([z, z], dim=1), lambda output: output.chunk(2, dim=1)[0]
    ),
    "negated, without its second half of channels": Form(
        lambda z: torch.cat([-z, z], dim=1), lambda output: -output.chunk(2, dim=1)[0]
    ),
    "a list with an axis of one frame, negated": Form(
        lambda z: [-each for each in z.unsqueeze(2)], lambda output: -torch.stack(output).squeeze(2)
    ),
    "a list with an axis of one frame": Form(
        lambda z: list(z.unsqueeze(2)), lambda output: torch.stack(output).squeeze(2)
    ),
}
"""How the network's output becomes what the scheduler receives."""


@dataclass(frozen=True)
class Latents:
    """z, in one of LAYOUTS, or followed by further channels that are the same for all, (1, channels, ...)."""

    layout: str = "z"
    value: Tensor | None = None

    def read(self, value: Any) -> Tensor:  # noqa: ANN401
        """Read z from the argument."""
        return LAYOUTS[self.layout].read(value) if self.value is None else value[:, : -self.value.shape[1]]

    def made(self, z: Tensor) -> Any:  # noqa: ANN401
        """Make the argument from z."""
        if self.value is None:
            return LAYOUTS[self.layout].make(z)
        return torch.cat([z, self.value.to(z).expand(len(z), *self.value.shape[1:])], dim=1)


@dataclass(frozen=True)
class Time:
    """slope x timestep + offset, per example, with further axes of the given lengths, filled with it."""

    slope: float
    offset: float
    axes: tuple[int, ...] = ()  # lengths after the batch's; a batch of timesteps has none


@dataclass(frozen=True)
class Guidance:
    """factor x the guidance scale, per example."""

    factor: float


@dataclass(frozen=True)
class Rows:
    """A tensor with `repeat` rows per prompt, or a list of one number per prompt.

    Some pipelines omit a mask that is all ones: `beside` names the rows that it masks.
    """

    name: str
    dtype: torch.dtype
    repeat: int = 1
    listed: bool = False
    beside: str = ""


@dataclass(frozen=True)
class Pieces:
    """A list with one tensor per prompt."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Repeated:
    """A list with the same value for each example."""

    value: Any


@dataclass(frozen=True)
class Constant:
    """The same value for all."""

    value: Any


Leaf = Latents | Time | Guidance | Rows | Pieces | Repeated | Constant


@dataclass(frozen=True)
class Call:
    """(network, z, timestep, **condition) -> its output in the form of z, calling the network as a pipeline does.

    Args:
        arguments: the arguments of the network's `forward`, by name: a tree of dictionaries, lists and tuples with a
            `Leaf` at every end.
        output: one of OUTPUTS.
        shapes: the observed shapes of one prompt's row of each input, by name.
    """

    arguments: Mapping[str, Any]
    output: str = "as it is"
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    _moved: dict[torch.device, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, network: nn.Module, z: Tensor, timestep: Tensor, **condition: Tensor) -> Tensor:
        """What the scheduler would receive for latents z (B, ...) at its timesteps (B,)."""
        with warnings.catch_warnings():  # torch warns that it cannot fuse norms of bf16 with weights in float32
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
            output = network(**self.filled(z, timestep, condition))
        return OUTPUTS[self.output].read(returned(output)).to(z.dtype)

    def filled(self, z: Tensor, timestep: Tensor, condition: Mapping[str, Tensor]) -> dict[str, Any]:
        """The network's arguments for a batch."""
        if z.device not in self._moved:
            self._moved[z.device] = _map(self.arguments, lambda leaf: _on(leaf, z.device))
        return _map(self._moved[z.device], lambda leaf: _value(leaf, z, timestep, condition))

    def rows(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """The condition of a batch by name, (B, ...) on the CPU, read from the arguments of its call."""
        found: dict[str, Tensor] = {}
        pairs = list(_pairs(self.arguments, arguments))
        for leaf, value in sorted(pairs, key=lambda pair: pair[1] is None):
            if isinstance(leaf, Rows) and value is None and leaf.beside in found:
                found[leaf.name] = torch.ones(found[leaf.beside].shape[:2], dtype=leaf.dtype)
            elif isinstance(leaf, Rows) and value is None:
                raise UserError(f"{leaf.name} is given for some prompts and not for others, expected rows for each")
            elif isinstance(leaf, Rows):
                rows: Tensor = torch.tensor(value) if leaf.listed else cast(Tensor, value)
                found[leaf.name] = rows.unflatten(0, (-1, leaf.repeat)) if leaf.repeat > 1 else rows
            elif isinstance(leaf, Pieces):
                pieces = cast(Sequence[Tensor], value)
                found[leaf.name] = padded(pieces)
                found[leaf.name + LENGTHS] = torch.tensor([len(each) for each in pieces])
        return {name: rows.detach().cpu() for name, rows in found.items()}

    def latents(self, arguments: Mapping[str, Any]) -> Tensor:
        """Read z from a call's arguments."""
        pairs = _pairs(self.arguments, arguments)
        return next(leaf.read(value) for leaf, value in pairs if isinstance(leaf, Latents))

    def example(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """A condition of the observed shapes, (count, ...): zeros, and pieces of full length."""
        found: dict[str, Tensor] = {}
        for _, leaf in self.leaves():
            match leaf:
                case Rows(name, dtype):
                    found[name] = torch.zeros(count, *self.shapes[name], dtype=dtype, device=device)
                case Pieces(name, dtype):
                    found[name] = torch.zeros(count, *self.shapes[name], dtype=dtype, device=device)
                    found[name + LENGTHS] = torch.full((count,), self.shapes[name][0], device=device)
                case Guidance():
                    found["guidance"] = torch.ones(count, dtype=torch.float64, device=device)
                case _:
                    pass
        return found

    def leaves(self) -> Iterator[tuple[str, Leaf]]:
        """Every leaf with its path, e.g. added_cond_kwargs.text_embeds."""
        return _leaves(self.arguments)

    @property
    def takes_guidance(self) -> bool:
        """Whether the network takes the guidance scale."""
        return any(isinstance(leaf, Guidance) for _, leaf in self.leaves())

    def stand_in(self, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401  (whatever the network returns)
        """An output of the right form for a call's arguments, without the network: the scheduler receives z."""
        output = OUTPUTS[self.output].make(self.latents(arguments))
        return (output,) if arguments.get("return_dict") is False else _Sample(output)

    def describe(self) -> tuple[str, ...]:
        """What was learned, as lines."""
        by_kind: dict[type, list[str]] = {}
        for path, leaf in self.leaves():
            by_kind.setdefault(type(leaf), []).append(_described(path, leaf))
        lines = [f"latents: {', '.join(by_kind[Latents])}; time: {', '.join(by_kind[Time])}; output: {self.output}"]
        prompts = by_kind.get(Rows, []) + by_kind.get(Pieces, [])
        lines.append(f"from the prompts: {', '.join(prompts) or 'nothing'}")
        if guidance := by_kind.get(Guidance):
            lines.append(f"guidance scale: {', '.join(guidance)}")
        if constants := [name for name in by_kind.get(Constant, []) + by_kind.get(Repeated, []) if name]:
            lines.append(f"the same for all: {', '.join(constants)}")
        return tuple(lines)


@dataclass
class _Sample:
    sample: Any

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        return (self.sample,)[index]


def returned(output: Any) -> Any:  # noqa: ANN401
    """A network's output, taken from its tuple or output class: a tensor, or a list of tensors."""
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", output)


def _map(tree: Any, change: Callable[[Leaf], Any]) -> Any:  # noqa: ANN401
    if isinstance(tree, Mapping):
        return {name: _map(part, change) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(part, change) for part in tree)
    return change(tree)


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Leaf]]:  # noqa: ANN401
    if isinstance(tree, Mapping | list | tuple):
        parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for name, part in parts:
            yield from _leaves(part, f"{path}.{name}" if path else str(name))
    else:
        yield path, tree


def _pairs(tree: Any, value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    """Every leaf with the value in its place in a call's arguments."""
    if isinstance(tree, Mapping):
        for name, part in tree.items():
            yield from _pairs(part, value.get(name))
    elif isinstance(tree, list | tuple):
        for part, each in zip(tree, value, strict=True):
            yield from _pairs(part, each)
    else:
        yield tree, value


def _on(leaf: Leaf, device: torch.device) -> Leaf:
    """The leaf with its tensors on a device."""
    return replace(leaf, value=_moved(leaf.value, device)) if isinstance(leaf, Constant | Repeated) else leaf


def _moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _value(leaf: Leaf, z: Tensor, timestep: Tensor, condition: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    """The value of a leaf in the call of a batch."""
    match leaf:
        case Latents():
            return leaf.made(z)
        case Time(slope, offset, axes):
            times = slope * timestep + offset
            return times.view(-1, *[1] * len(axes)).expand(-1, *axes) if axes else times
        case Guidance(factor):
            scales = _row(condition, "guidance").to(z.device)
            return (factor * scales).to(z.dtype)
        case Rows(name, dtype, repeat, listed):
            rows = _row(condition, name)
            if listed:
                return rows.to(dtype).tolist()
            rows = (rows.flatten(0, 1) if repeat > 1 else rows).to(
                z.device, z.dtype if dtype.is_floating_point else dtype
            )
            return rows.contiguous()  # some networks use views of them
        case Pieces(name, dtype):
            lengths = _row(condition, name + LENGTHS).long().tolist()
            rows = _row(condition, name).to(z.device, z.dtype if dtype.is_floating_point else dtype)
            return [row[:length] for row, length in zip(rows, lengths, strict=True)]
        case Repeated(value):
            return [value] * len(z)
        case Constant(value):
            floats = isinstance(value, Tensor) and value.is_floating_point() and z.dtype == torch.float64
            return value.double() if floats else value


def _row(condition: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in condition:
        raise UserError(f"the network requires {name}, and the condition has none: pass {name}=, a row per example")
    return condition[name]


def _described(path: str, leaf: Leaf) -> str:
    match leaf:
        case Latents(value=Tensor()):
            return f"the first channels of {path}"
        case Latents(layout):
            return path if layout == "z" else f"{path} ({layout})"
        case Time(slope, offset):
            return f"{path} = {slope:.4g} t{f' + {offset:.4g}' if offset else ''}"
        case Guidance(factor):
            return path if factor == 1 else f"{path} = {factor:.4g} g"
        case Rows(repeat=repeat) if repeat > 1:
            return f"{path} ({repeat} rows each)"
        case Constant(value) | Repeated(value):
            return "" if value is None or isinstance(value, bool | str) or not _said(value) else path
        case _:
            return path


def _said(value: Any) -> bool:  # noqa: ANN401
    return not (isinstance(value, dict | list | tuple) and not value)
