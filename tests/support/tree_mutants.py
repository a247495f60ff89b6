"""What a file holds, changed by its structure: other types, depths, sizes, names and numbers; and JSON so changed."""

import json
import math
import random
from collections.abc import Callable
from typing import Any

Json = Any
Place = tuple[Any, Any]  # an object or a list, and a key or an index in it

VALUES: list[Callable[[], Json]] = [
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: 0,
    lambda: -1,
    lambda: 1,
    lambda: 3,
    lambda: 65_536,
    lambda: 10**9,
    lambda: 10**400,
    lambda: -(10**400),
    lambda: 0.5,
    lambda: 1e308,
    lambda: math.nan,
    lambda: math.inf,
    lambda: "",
    lambda: "x",
    lambda: "0",
    lambda: "../x",
    lambda: "\0",
    lambda: "x" * 10_000,
    lambda: [],
    lambda: {},
    lambda: [None],
    lambda: [[]],
    lambda: [0] * 100,
    lambda: ["x", 1, None],
    lambda: {"x": {"y": []}},
    lambda: {"0": 0},
    lambda: json.loads("[" * 200 + "]" * 200),
]


def places(content: Json) -> list[Place]:
    """Every place in it that holds a value."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found: list[Place] = []
    for key, value in inner:
        found += [(content, key), *places(value)]
    return found


def cast(value: Json, draw: random.Random) -> Json:
    """The same in another type, as far as it has one."""
    return draw.choice(
        [str(value), [value], {"value": value}, {str(value)[:20]: value}, list(str(value)[:9]), [value] * 9]
    )


def scaled(value: Json, draw: random.Random) -> Json:
    """Another number, or as many times a list."""
    if isinstance(value, list):
        return value * draw.choice([0, 2, 40])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return cast(value, draw)
    near = [-value, value + 1, value - 1, 2 * value, 1000 * value]
    return draw.choice(near if abs(value) > 1e300 else [*near, value / 3, float(value)])


def change(content: Json, draw: random.Random) -> Json:
    """One change."""
    found = places(content)
    if not found or draw.random() < 0.02:
        return draw.choice(VALUES)()
    container, key = draw.choice(found)
    match draw.choice(["replace", "replace", "delete", "cast", "scale", "scale", "swap", "copy", "rename"]):
        case "replace":
            container[key] = draw.choice(VALUES)()
        case "delete":
            del container[key]
        case "cast":
            container[key] = cast(container[key], draw)
        case "scale":
            container[key] = scaled(container[key], draw)
        case "swap":
            other, place = draw.choice(found)
            if not places(other[place]) and not places(container[key]):
                container[key], other[place] = other[place], container[key]
        case "copy":
            other, place = draw.choice(found)
            container[key] = json.loads(json.dumps(other[place]))
        case "rename" if isinstance(container, dict):
            container[draw.choice(["x", "", "_class_name", "kind", f"{key}_"])] = container.pop(key)
    return content


def changed_tree(tree: Json, draw: random.Random) -> Json:
    """The tree, which is changed itself, with one to three changes."""
    for _ in range(draw.randint(1, 3)):
        tree = change(tree, draw)
    return tree


def json_mutant(content: bytes, seed: int) -> bytes:
    """A JSON text with one to three changes; one of ten names a key twice."""
    draw = random.Random(seed)
    tree = changed_tree(json.loads(content), draw)
    text = json.dumps(tree)
    if isinstance(tree, dict) and tree and draw.random() < 0.1:
        key = draw.choice(list(tree))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(draw.choice(VALUES)())}}}"
    return text.encode()
