"""Files that somebody changed by their structure: JSON, recipes, the headers of npz and those of tar."""

import io
import json
import random
import struct
import zipfile
from ast import literal_eval
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from support.tree_mutants import changed_tree, json_mutant

DTYPES = [
    "|O",
    "|b1",
    "|u1",
    ">u2",
    "<i8",
    "<u8",
    "<f2",
    "<f8",
    "<c16",
    "<U3",
    "|S9",
    "|V10",
    "<M8[s]",
    "|u0",
    [["a", "|u1"]],
]

FIELDS = {
    "name": 100, "mode": 8, "uid": 8, "gid": 8, "size": 12, "mtime": 12, "chksum": 8, "type": 1, "linkname": 100,
    "magic": 8, "uname": 32, "gname": 32, "devmajor": 8, "devminor": 8, "prefix": 155,
}  # fmt: skip
"""The fields of a tar header and their bytes (POSIX.1-1988)."""

NUMBERS = ("mode", "uid", "gid", "size", "mtime")

TYPES = "0123456789xgLKSDVMN\0"

BLOCK = 512


def recipe_mutant(content: bytes, seed: int) -> bytes:
    """A recipe with one to three changes."""
    tree = changed_tree(yaml.safe_load(content), random.Random(seed))
    return yaml.safe_dump(tree, allow_unicode=True).encode()


def npz_mutant(content: bytes, seed: int) -> bytes:
    """An npz whose arrays have other headers and names, their numbers as they were."""
    draw, tree, bodies = random.Random(seed), dict[str, Any](), dict[str, bytes]()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            whole = archive.read(name)
            end = 10 + struct.unpack("<H", whole[8:10])[0]
            header = literal_eval(whole[10:end].decode())
            tree[name] = {"version": [1, 0], "header": {**header, "shape": list(header["shape"])}}
            bodies[name] = whole[end:]
    if draw.random() < 0.3:
        tree[draw.choice(list(tree))]["header"]["descr"] = draw.choice(DTYPES)
    else:
        tree = changed_tree(tree, draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entries = tree.items() if isinstance(tree, dict) else [("images.npy", tree)]
        for name, array in entries:
            body = bodies.get(name, draw.choice(list(bodies.values())))
            archive.writestr(zipfile.ZipInfo(name or "0"), array_header(array) + body)
    return buffer.getvalue()


def array_header(array: object) -> bytes:
    """The header of a npy file, as far as there is one in what it was changed to."""
    described: Any = array if isinstance(array, dict) else {"header": array}
    match described.get("version"):
        case [int(major), int(minor)] if 0 <= major < 256 and 0 <= minor < 256:
            version = bytes([major, minor])
        case _:
            version = b"\1\0"
    header = described.get("header")
    if isinstance(header, dict) and isinstance(header.get("shape"), list):
        header = {**header, "shape": tuple(header["shape"])}
    text = repr(header).encode()[:60_000] + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(text)) + text


def tar_mutant(content: bytes, seed: int) -> bytes:
    """A tar whose members have other headers, each with the checksum that it should have."""
    draw, tree = random.Random(seed), list(members(content))
    if draw.random() < 0.3:
        draw.choice(tree)["type"] = draw.choice(TYPES)
    found: Any = changed_tree(tree, draw)
    return b"".join(map(member, found if isinstance(found, list) else [found])) + bytes(2 * BLOCK)


def members(content: bytes) -> Iterator[dict[str, Any]]:
    """The headers and contents of a tar."""
    place = 0
    while any(header := content[place : place + BLOCK]):
        described, start = dict[str, Any](), 0
        for name, width in FIELDS.items():
            described[name] = header[start : start + width].rstrip(b"\0").decode("latin-1")
            start += width
        described |= {name: int(described[name].strip() or "0", 8) for name in NUMBERS}
        size, place = described["size"], place + BLOCK
        yield described | {"content": content[place : place + size].decode("latin-1")}
        place += -(-size // BLOCK) * BLOCK


def member(described: object) -> bytes:
    """The header and content of one member, as far as it has them."""
    fields: Any = described if isinstance(described, dict) else {"name": described}
    header = b"".join(field(fields.get(name), width) for name, width in FIELDS.items())
    at = sum(list(FIELDS.values())[:6])
    checksum = sum(header[:at]) + sum(header[at + 8 :]) + 8 * ord(" ")
    header = header[:at] + f"{checksum:06o}\0 ".encode() + header[at + 8 :]
    content = str(fields.get("content", "")).encode("latin-1", "replace")
    return header.ljust(BLOCK, b"\0") + content + bytes(-len(content) % BLOCK)


def field(value: object, width: int) -> bytes:
    """Text, or an octal number, or the base 256 of GNU's where it is too large or below 0."""
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < 8 ** (width - 1):
            return f"{value:0{width - 1}o}\0".encode()[-width:]
        return bytes([0x80 if value > 0 else 0xFF]) + (value % 256 ** (width - 1)).to_bytes(width - 1)
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text.encode("latin-1", "replace")[:width].ljust(width, b"\0")


STRUCTURE: dict[str, Callable[[bytes, int], bytes]] = {
    ".json": json_mutant,
    ".yaml": recipe_mutant,
    ".npz": npz_mutant,
    ".tar": tar_mutant,
}
"""What changes the files of each suffix."""
