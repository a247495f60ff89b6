"""What was learned about a pipeline, in a model's folder.

progdist.json       `pipeline`: the tree of its network's arguments, the shape of its latents, its own arguments
call.safetensors    the tensors among them that are the same for all, and those of its decoding
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from progdist._utils.files import check_tensors_finite, read_tensors
from progdist.models.calls import (
    LAYOUTS,
    OUTPUTS,
    Call,
    Constant,
    Guidance,
    Latents,
    Pieces,
    Repeated,
    Rows,
    Time,
)
from progdist.models.components import PipelineFolder
from progdist.models.conditioning import Shape, Spacing
from progdist.models.decoding import Decoding
from progdist.models.pipeline_prompts import Guiding, Pipeline

FILE = "call.safetensors"
DECODING = "decoding."  # prefix of the names of its tensors
MOST, MOST_NUMBERS = 2**20, 2**28  # the longest axis of a shape, and the most numbers in a tensor
LEAVES = {each.__name__.lower(): each for each in (Latents, Time, Guidance, Rows, Pieces, Repeated, Constant)}


def write_pipeline(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """Write the tensors to a folder; return what progdist.json records besides them."""
    tensors: dict[str, Tensor] = {}
    tree = _packed(pipeline.call.arguments, tensors)
    decoding = pipeline.decoding
    if decoding is not None:
        parts = {"place": decoding.place, "scale": decoding.scale, "shift": decoding.shift}
        tensors |= {DECODING + name: part for name, part in parts.items() if part is not None}
    if tensors:
        safetensors.torch.save_file(tensors, folder / FILE)
    return {
        "arguments": tree,
        "output": pipeline.call.output,
        "rows": {name: list(shape) for name, shape in pipeline.call.shapes.items()},
        "latents": list(pipeline.latents),
        "call": dict(pipeline.arguments),
        "unguided": dict(pipeline.off),
        "guiding": asdict(pipeline.guiding) if pipeline.guiding else None,
        "scale": list(pipeline.scale) if pipeline.scale else None,
        "spacing": pipeline.spacing,
        "alone": pipeline.alone,
        "decoded": list(decoding.shape) if decoding else None,
    }


def read_pipeline(record: Mapping[str, Any], folder: Path) -> Pipeline:
    """Read what `write_pipeline` wrote. A damaged record raises KeyError, TypeError, ValueError, or a UserError."""
    tensors = read_tensors(folder / FILE) if (folder / FILE).is_file() else {}
    if record["output"] not in OUTPUTS:
        raise ValueError(f"the output is {str(record['output'])[:50]}, expected one of {', '.join(OUTPUTS)}")
    check_tensors_finite(tensors, folder / FILE)
    shapes = {str(name): _shape(sides) for name, sides in record["rows"].items()}
    call, latents = Call(_unpacked(record["arguments"], tensors), record["output"], shapes), _shape(record["latents"])
    kinds = [type(leaf) for _, leaf in call.leaves()]
    if (kinds.count(Latents), kinds.count(Time)) != (1, 1):
        raise ValueError("the arguments do not have exactly one place for the latents and one for the time")
    if wrong := [name for name in (*record["call"], *record["unguided"]) if not str(name).isidentifier()]:
        raise ValueError(f"{wrong[0][:50]!r} is not the name of an argument")
    return Pipeline(
        PipelineFolder.read(folder),
        call,
        latents,
        dict(record["call"]),
        {str(name): float(value) for name, value in record["unguided"].items()},
        _guiding(record["guiding"]) if record["guiding"] else None,
        (str(record["scale"][0]), float(record["scale"][1])) if record["scale"] else None,
        _spacing(record["spacing"]),
        record["alone"] is True,
        _decoding(tensors, _shape(record["decoded"]), latents) if record["decoded"] else None,
    )


def _decoding(tensors: Mapping[str, Tensor], shape: Shape, latents: Shape) -> Decoding:
    place, scale, shift = (tensors.get(DECODING + name) for name in ("place", "scale", "shift"))
    if scale is None or shift is None or math.prod(shape) != math.prod(latents):
        raise ValueError(f"the decoding of {latents} to {shape} lacks numbers")
    if any(torch.broadcast_shapes(each.shape, shape) != shape for each in (scale, shift)) or not (scale != 0).all():
        raise ValueError(f"the decoding to {shape} has numbers of {tuple(scale.shape)} and {tuple(shift.shape)}")
    if place is not None and not torch.equal(place.flatten().sort().values, torch.arange(math.prod(shape))):
        raise ValueError("the decoding is not a rearrangement of the latents")
    return Decoding(place, scale, shift, shape)


def _spacing(value: object) -> Spacing:
    if (isinstance(value, float) and 0 <= value < 1) or value in ("stock", "given", "unknown"):
        return cast(Spacing, value)
    raise ValueError(f"the spacing is {str(value)[:50]}, expected stock, given or a number")


def _shape(sides: Any) -> tuple[int, ...]:  # noqa: ANN401
    if not isinstance(sides, list) or not all(isinstance(side, int) and 0 < side <= MOST for side in sides):
        raise ValueError(f"a shape is {str(sides)[:50]}, expected whole numbers up to {MOST:,}")
    if math.prod(sides) > MOST_NUMBERS:
        raise ValueError(f"a shape is {str(sides)[:50]}, expected at most {MOST_NUMBERS:,} numbers")
    return tuple(sides)


def _guiding(fields: Mapping[str, Any]) -> Guiding:
    numbers = {name: float(fields[name]) for name in ("default", "off", "added")}
    flags = {name: fields[name] is True for name in ("negative_first", "normalized", "exact")}
    if not str(fields["parameter"]).isidentifier() or not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"the guidance is {str(dict(fields))[:80]}, expected an argument's name and numbers")
    return Guiding(parameter=str(fields["parameter"]), **numbers, **flags)


def _packed(tree: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """A tree of leaves as JSON; tensors are collected, by number."""
    if isinstance(tree, Mapping):
        return {"of": {name: _packed(part, tensors) for name, part in tree.items()}}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [_packed(part, tensors) for part in tree]}
    leaf: Any = tree
    fields: dict[str, Any] = dict(leaf.__dict__)
    if "value" in fields:
        fields["value"] = _value(fields["value"], tensors)
    if "dtype" in fields:
        fields["dtype"] = str(fields["dtype"]).removeprefix("torch.")
    if "axes" in fields:
        fields["axes"] = list(fields["axes"])
    return {type(leaf).__name__.lower(): fields}


def _unpacked(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    ((kind, content),) = tree.items()
    if kind == "of":
        return {name: _unpacked(part, tensors) for name, part in content.items()}
    if kind in ("list", "tuple"):
        parts = [_unpacked(part, tensors) for part in content]
        return tuple(parts) if kind == "tuple" else parts
    fields = dict(content)
    if "value" in fields:
        fields["value"] = _read_value(fields["value"], tensors)
    if "dtype" in fields:
        fields["dtype"] = _dtype(fields["dtype"])
    if "axes" in fields:
        fields["axes"] = tuple(fields["axes"])
    if kind == "latents" and fields["layout"] not in LAYOUTS:
        raise ValueError(f"the latents' layout is {str(fields['layout'])[:50]}, expected one of {', '.join(LAYOUTS)}")
    numbers = [fields[name] for name in ("slope", "offset", "factor") if name in fields]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"{kind} is {str(fields)[:50]}, expected numbers")
    return LEAVES[kind](**fields)


def _value(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        name = f"{len(tensors):03d}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"of": {str(name): _value(part, tensors) for name, part in value.items()}}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_value(part, tensors) for part in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"dtype": str(value).removeprefix("torch.")}


def _read_value(value: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "of":
            return {name: _read_value(part, tensors) for name, part in content.items()}
        case "dtype":
            return _dtype(content)
    parts = [_read_value(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"the type is {str(name)[:50]}, expected a torch.dtype")
    return found
