"""Files that somebody damaged or made up: each is refused in one line, or is as good as the one it was made from.

Every kind of file that is read is changed at random (bytes flipped, cut out, repeated, put in, numbers made large),
FUZZ times; and JSON, recipes and the headers of npz and tar by their structure, too. `make fuzz` takes more. Nothing
but a UserError may come of it, within some seconds and two gigabytes.
"""

import gzip
import io
import os
import random
import resource
import shutil
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from progdist import UserError
from progdist.data.sources import load_images
from progdist.teachers.open import open_teacher
from support.commands import TINY
from support.damaged_files import CASES, Case, picture, stock_folder
from support.structure_mutants import STRUCTURE

pytestmark = pytest.mark.slow


FUZZ = int(os.environ.get("FUZZ", "24"))
"""Changed files of each kind."""


SECONDS = 10.0


GIGABYTES = 2


NUMBERS = (
    b"0",
    b"-1",
    b"99999999999",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xff\xff\xff",
    b"\x7f" * 8,
    b"\0" * 8,
)


def changed(content: bytes, seed: int) -> bytes:
    """The content with one to four changes."""
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 4)):
        folder, length = draw.randrange(len(content) + 1), draw.randint(1, 64)
        before, after = content[:folder], content[folder:]
        match draw.choice(["flip", "cut", "repeat", "put", "number"]):
            case "flip" if after:
                content = before + bytes([after[0] ^ 1 << draw.randrange(8)]) + after[1:]
            case "cut":
                content = before + after[length:]
            case "repeat":
                content = before + after[:length] * draw.randint(2, 6) + after[length:]
            case "put":
                content = before + draw.randbytes(draw.randint(1, 8)) + after
            case "number":
                digits = len(after) - len(after.lstrip(b"0123456789."))
                content = before + draw.choice(NUMBERS) + after[digits:]
    return content


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A length that is believed is a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + GIGABYTES * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def try_changed(case: Case, folder: Path, change: Callable[[bytes, int], bytes], *, kept: bool) -> str:
    """Read a case's file as often as it is told, changed by each seed; `kept` compares what is read with the whole."""
    case.make(folder)
    path, count, refused = folder / case.file, max(1, int(case.part * FUZZ)), 0
    whole = path.read_bytes()
    original = case.read(folder) if kept else None
    for seed in range(count):
        path.write_bytes(change(whole, seed))
        started = time.monotonic()
        try:
            found = case.read(folder)
            assert not kept or bool((found == original).all()), seed
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), seed
            assert len(str(error)) < 1000, seed
        except Exception as error:
            raise AssertionError(f"seed {seed}: {path.read_bytes()[:2000]!r}") from error
        assert time.monotonic() - started < SECONDS, seed
    assert refused or not case.refusable or count < 20
    return f"{refused} of {count} refused, the others read"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CASES)
def test_whatever_is_in_a_file_is_refused_or_read(name: str, tmp_path: Path) -> None:
    print(f"{name}: {try_changed(CASES[name], tmp_path, changed, kept=CASES[name].exact)}")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if Path(case.file).suffix in STRUCTURE])
def test_whatever_is_said_in_a_file_is_refused_or_read(name: str, tmp_path: Path) -> None:
    """Files of another structure: types, depths, sizes, names and numbers."""
    case = CASES[name]
    print(f"{name}, by structure: {try_changed(case, tmp_path, STRUCTURE[Path(case.file).suffix], kept=case.exact)}")


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe", nested(100_000)),
        ("recipe", (TINY + LAUGHS + "about: *i\n").encode()),
        ("recipe", LAUGHS.encode() + TINY.encode().replace(b"name: tiny", b"name: *i")),
        ("recipe", b"!!python/object/apply:os.system ['touch HACKED']"),
        ("progdist.json", nested(100_000)),
        ("network config", nested(100_000)),
        ("model index", nested(100_000)),
        ("checkpoint's JSON", nested(100_000)),
        ("official", b"\xdd\xff\xff\xff\xff"),
        ("official", b"\x91" * 100_000),
        ("official", b"\xc6\xff\xff\xff\xff"),
        ("idx", b"\0\0\x08\3" + b"\xff" * 12),
        ("idx", b"\0\0\x08\xff" + b"\xff" * 2000),
        ("idx, gzipped", b"\x1f\x8b"),
        ("CIFAR python", b"cos\nsystem\n(S'touch HACKED'\ntR."),
    ],
)
def test_traps(name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = CASES[name]
    case.make(tmp_path)
    (tmp_path / case.file).write_bytes(content)
    if name == "checkpoint's JSON":
        case.read(tmp_path)  # the one before
        return
    with pytest.raises(UserError):
        case.read(tmp_path)
    assert not (tmp_path / "HACKED").exists()


def test_an_array_that_claims_to_be_large(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 1000, 1000)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", header.getvalue() + b"\0" * 100)
    with pytest.raises(UserError, match="npz"):
        load_images(f"npz:{tmp_path}/a.npz")


def packed_zeros(folder: Path, kind: str) -> str:
    """A few hundred kilobytes of 512 MiB of zeros, and the source that reads them."""
    size = 2**29
    if kind == "gz":
        with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(b"\0\0\x08\3" + struct.pack(">3I", size // 64, 8, 8))
            for _ in range(64):
                file.write(bytes(size // 64))
        return f"idx:{folder}"
    if kind == "npz":
        with (
            zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("images.npy", "w") as stream,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": (size // 64, 8, 8)}
            np.lib.format.write_array_header_1_0(stream, header)
            for _ in range(64):
                stream.write(bytes(size // 64))
        return f"npz:{folder}/a.npz"
    with gzip.open(folder / "a.tar", "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w|") as tar:
        member = tarfile.TarInfo("0.png")
        member.size = size
        tar.addfile(member, Zeros(size))
    return f"wds:{folder}"


class Zeros(io.RawIOBase):
    """So many zeros, of which none lies in memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, count: int = -1) -> bytes:
        self.size -= (count := min(count, self.size))
        return bytes(count)


@pytest.mark.parametrize("kind", ["gz", "npz", "tar"])
def test_archives_that_unpack_to_much_more_than_they_are(kind: str, tmp_path: Path) -> None:
    source = packed_zeros(tmp_path, kind)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"expected at most|unpacks to more than"):
        load_images(source)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6


def test_a_sparse_file_in_a_tar(tmp_path: Path) -> None:
    """A header of 512 bytes that says a terabyte, of which no byte is there."""
    member = tarfile.TarInfo("0.png")
    member.size = 2**40
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(UserError, match=r"a.tar: 0.png holds 1,099,511,627,776 bytes"):
        load_images(f"wds:{tmp_path}")[0]


def test_a_picture_that_claims_to_be_large(tmp_path: Path) -> None:
    picture(tmp_path)
    content = bytearray((tmp_path / "a.png").read_bytes())
    import zlib

    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png"):
        load_images(f"folder:{tmp_path}")


@pytest.mark.parametrize("field", ["num_train_timesteps", "layers_per_block", "sample_size", "block_out_channels"])
def test_numbers_that_no_model_has(field: str, tmp_path: Path) -> None:
    import json

    stock_folder(tmp_path)
    path = tmp_path / ("scheduler/scheduler_config.json" if field.startswith("num") else "unet/config.json")
    content = json.loads(path.read_text())
    content[field] = [2**16, 2**16] if field == "block_out_channels" else 10**9
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="restore"):
        open_teacher(str(tmp_path))


@pytest.mark.parametrize("added", [{"unet": ["diffusers", "x" * 10_000]}, {f"part{i}": ["x", "X"] for i in range(999)}])
def test_what_an_index_says_is_quoted_in_short(added: dict[str, Any], tmp_path: Path) -> None:
    import json

    stock_folder(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "Other"], **added}))
    with pytest.raises(UserError, match="expected a pipeline with one of these networks") as caught:
        open_teacher(str(tmp_path))
    assert len(str(caught.value)) < 1000


def test_an_index_of_weights_cannot_lead_outside(tmp_path: Path) -> None:
    import json

    stock_folder(tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.move(weights, tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}
    (weights.with_name(weights.name + ".index.json")).write_text(json.dumps(index))
    with pytest.raises(UserError, match="elsewhere"):
        open_teacher(str(tmp_path / "model"))
