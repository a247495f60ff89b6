"""YAML as recipes have it: the numbers of YAML 1.2, and nothing twice, hidden, or larger than it looks."""

import math
from itertools import pairwise

import pytest
import yaml

from progdist.recipes.text import MOST_NODES, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("0", 0), ("1.5", 1.5), ("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("+2.5E+3", 2500.0),
        (".inf", math.inf), ("-.inf", -math.inf), ("true", True), ("False", False), ("~", None), ("null", None),
        ("yes", "yes"), ("on", "on"), ("off", "off"), ("No", "No"), ("1:30", "1:30"), ("010", "010"),
        ("1_000", "1_000"), ("0x10", "0x10"), ("2020-01-01", "2020-01-01"), ("'12'", "12"), ("=", "="),
    ],
)  # fmt: skip
def test_words_and_numbers(text: str, value: object) -> None:
    """The core schema of YAML 1.2, section 10.3, without octal and hexadecimal numbers."""
    read = read_yaml(f"key: {text}")["key"]
    assert (type(read), read) == (type(value), value)
    assert read_yaml(write_yaml({"key": value})) == {"key": value}


def test_anchors_mean_what_they_say() -> None:
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\nlist: [*base, *base]"
    assert read_yaml(text) == yaml.safe_load(text)


def laughs(part: str, first: str) -> str:
    """Nine anchors, each ten times the one before."""
    names = "abcdefghi"
    lines = (f"{b}: &{b} {part.format(','.join([f'*{a}'] * 10))}" for a, b in pairwise(names))
    return "\n".join([f"a: &a {first}", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "duplicate key c"),
        (laughs("[{}]", "[x]"), f"at most {MOST_NODES:,} keys"),
        (laughs("{{<<: [{}]}}", "{x: 1, y: 2}"), f"at most {MOST_NODES:,} keys"),
        ("a: &a {b: *a}", "contains itself"),
        ("a: 1e999", "exceeds the largest number"),
        ("a: !!bool yes", "has no meaning"),
        ("a: !!python/name:os.system x", "has no meaning"),
        ("a: !!set {x}", "has no meaning"),
        ("? [1, 2]\n: 3", "expected a word or a number as key"),
    ],
)
def test_what_no_recipe_says(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        read_yaml(text)
