"""Image files of every kind, and the same files as every source has them."""

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import Table, parquet


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401
    """An image as a file of a kind, e.g. png."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(depth: int, colour: int, row: bytes, width: int, trns: bytes | None = None) -> bytes:
    """A PNG of one row of samples as they are packed, with a tRNS chunk if one is given (PNG, section 11.3.2.1)."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))]
    chunks += [(b"tRNS", trns)] if trns is not None else []
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def of_size(width: int, height: int) -> bytes:
    """A PNG whose header says that it is of a size, and that holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    empty = b"IDAT" + zlib.compress(b"")
    parts = [(len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in (body, empty)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bytes_of(image: Any) -> Any:  # noqa: ANN401
    """(C, H, W) in [-1, 1] as bytes (H, W, C)."""
    return np.rint((image.numpy() + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)


def every_source(root: Path, files: Sequence[bytes], suffix: str = "png") -> dict[str, str]:
    """The same image files as each kind of source has them; their captions are one word."""
    folder = root / "files"
    folder.mkdir(parents=True)
    for number, content in enumerate(files):
        (folder / f"{number:02d}.{suffix}").write_bytes(content)
        (folder / f"{number:02d}.txt").write_text("word")
    rows = [{"bytes": content, "path": None} for content in files]
    (root / "table").mkdir()
    parquet.write_table(Table.from_pydict({"image": rows}), root / "table" / "a.parquet")
    with tarfile.open(root / "a.tar", "w") as file:
        for number, content in enumerate(files):
            member = tarfile.TarInfo(f"{number:02d}.{suffix}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    paths = {
        "folder": folder,
        "captions": folder,
        "parquet": root / "table",
        "wds": root / "a.tar",
        "hub": root / "table",
    }
    return {kind: f"{kind}:{path}" for kind, path in paths.items()}
