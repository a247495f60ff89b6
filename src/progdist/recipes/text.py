"""YAML of recipes: plain words are text, keys are unique, and the size is limited.

Numbers, true, false and null are those of YAML 1.2. Other conversions of YAML 1.1 are not applied: `yes`, `on`, `off`,
1:30, 010 and dates stay text. Anchors and `<<` are read; their unfolded size is measured first.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

COLUMNS = 100  # width of comments
MOST_NODES = 10_000  # keys and values of a recipe, unfolded; the largest shipped recipe has about a hundred

_PLAIN = {  # tag: (its pattern, the characters that it can start with)
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": ("[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": ("<<", "<"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (as PyYAML has it)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _tag, (_pattern, _first) in _PLAIN.items():
    for _each in (_Loader, _Dumper):
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def read_yaml(text: str) -> Any:  # noqa: ANN401  (whatever a file holds)
    """Parse YAML text.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, or not that of a recipe: a duplicate key, a tag, a
            number beyond all floats, more than MOST_NODES keys and values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, loader, {}, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def write_yaml(content: Any) -> str:  # noqa: ANN401
    """YAML that `read_yaml` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def write_sections(content: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """YAML in the style of handwritten files: one key per line, its comment above, and lists in one line.

    `comments` are by the dotted name of a key; they are wrapped.
    """
    return "".join(_written(content, comments, ""))


def _written(content: Mapping[Any, Any], comments: Mapping[str, str], where: str) -> Iterator[str]:
    indent = "  " * where.count(".")
    for key, value in content.items():
        width = COLUMNS - len(indent) - len("# ")
        yield from (f"{indent}# {line}\n" for line in wrap(comments.get(f"{where}{key}", ""), width))
        nested = isinstance(value, Mapping) and (not where or any(isinstance(each, Mapping) for each in value.values()))
        if nested:
            yield f"{indent}{key}:\n"
            yield from _written(value, comments, f"{where}{key}.")
        else:
            flow = None if isinstance(value, Mapping | list) else False
            written = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=math.inf)
            yield f"{indent}{written}"


def leaves(content: Any, where: str = "", *, lists: bool) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Every value that is not a section, with its dotted name; with `lists`, the items of lists."""
    if isinstance(content, Mapping):
        parts: Iterable[tuple[Any, Any]] = content.items()
    elif lists and isinstance(content, Sequence) and not isinstance(content, str | bytes):
        parts = enumerate(content)
    else:
        yield where, content
        return
    for key, part in parts:
        yield from leaves(part, f"{where}.{key}" if where else str(key), lists=lists)


def _check(node: Node, loader: _Loader, sizes: dict[int, int], within: set[int]) -> int:
    """The number of nodes that a node unfolds to; `sizes` are known ones, `within` the nodes around it."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in within:
        raise ConstructorError(None, None, "an anchor contains itself", node.start_mark)
    if isinstance(node, ScalarNode):
        _check_scalar(node, loader)
    elif node.tag not in (loader.DEFAULT_MAPPING_TAG, loader.DEFAULT_SEQUENCE_TAG):
        raise ConstructorError(None, None, f"the tag {node.tag} has no meaning in a recipe", node.start_mark)
    parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else []
    parts = list(node.value) if isinstance(node, SequenceNode) else parts
    if isinstance(node, MappingNode):
        _check_keys(node)
    within.add(id(node))
    size = 1 + sum(_check(part, loader, sizes, within) for part in parts)
    within.remove(id(node))
    if size > MOST_NODES:
        raise ConstructorError(None, None, f"expected at most {MOST_NODES:,} keys and values", node.start_mark)
    sizes[id(node)] = size
    return size


def _check_scalar(node: ScalarNode, loader: _Loader) -> None:
    plain = loader.resolve(ScalarNode, node.value, (node.style is None, node.style is not None))
    if node.tag != plain:
        raise ConstructorError(None, None, f"the tag {node.tag} has no meaning in a recipe", node.start_mark)
    named = node.value.lower().endswith(("inf", "nan"))
    if plain.endswith(":float") and not named and math.isinf(float(node.value)):
        raise ConstructorError(None, None, f"{node.value[:20]} exceeds the largest number", node.start_mark)


def _check_keys(node: MappingNode) -> None:
    seen = set[tuple[str, str]]()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise ConstructorError(None, None, "expected a word or a number as key", key.start_mark)
        if (key.tag, key.value) in seen:
            raise ConstructorError(None, None, f"duplicate key {key.value[:50]}", key.start_mark)
        seen.add((key.tag, key.value))
