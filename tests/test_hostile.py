"""Files that somebody damaged or made up: each is refused in one line, or is as good as the one it was made from.

Every kind of file that is read is changed at random (bytes flipped, cut out, repeated, put in, numbers made large),
FUZZ times; `make fuzz` takes more. Nothing but a UserError may come of it, within some seconds and two gigabytes.
"""

import gzip
import io
import os
import pickle
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import progdist
from conftest import TINY, stock_network
from progdist import Cosine, Denoiser, UserError
from progdist.data.sources import load_images
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.models.io.folder import load
from progdist.models.io.jax_checkpoint import import_checkpoint
from progdist.models.unet import unet
from progdist.recipes.files import read_recipe
from progdist.runs.folder import RunFolder
from progdist.runs.report import write_report
from progdist.training.checkpoint import Checkpoint, Checkpoints

pytestmark = pytest.mark.slow

FUZZ = int(os.environ.get("FUZZ", "40"))
"""Changed files of each kind."""

SECONDS = 10.0
GIGABYTES = 2


@dataclass(frozen=True)
class Kind:
    """A kind of file: the file within a folder that is changed, and what reads the folder.

    `exact` says that whatever is read must be what was written, which checksums promise, `part` of FUZZ is how often it
    is tried, and `refusable` that some changes are to be refused.
    """

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    exact: bool = False
    part: float = 1.0
    refusable: bool = True


def model_folder(place: Path) -> None:
    torch.manual_seed(0)
    network = unet(image=(1, 8, 8), width=4, multipliers=(1,), groups=4)
    progdist.save(Denoiser(network, Cosine(), PARAMETERIZATIONS["v"]), place / "model", steps=[4])


def read_model(place: Path) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in load(place / "model").denoiser.parameters()]).detach()


def stock_folder(place: Path) -> None:
    DDPMPipeline(stock_network(), DDPMScheduler()).save_pretrained(place)


def checkpoints(place: Path) -> None:
    for update in (5, 10):
        Checkpoints(place).save(Checkpoint(update, {"w": torch.full((50,), 1.0)}, {"seconds": 1.5}))


def read_checkpoint(place: Path) -> Any:  # noqa: ANN401
    latest = Checkpoints(place).latest()
    assert latest is not None  # the one before is whole
    return latest.tensors["w"]


def images(place: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 255, (6, 8, 8), dtype=np.uint8)


def idx(place: Path) -> None:
    (place / "train-images").write_bytes(b"\0\0\x08\3" + struct.pack(">3I", 6, 8, 8) + images(place).tobytes())


def idx_gz(place: Path) -> None:
    idx(place)
    (place / "train-images.gz").write_bytes(gzip.compress((place / "train-images").read_bytes(), mtime=0))
    (place / "train-images").unlink()


def cifar_binary(place: Path) -> None:
    (place / "data_batch_1.bin").write_bytes(bytes(range(256)) * 12 + b"\1")


def cifar_python(place: Path) -> None:
    told = {b"labels": [1, 2], b"data": np.zeros((2, 3072), np.uint8)}
    (place / "data_batch_1").write_bytes(pickle.dumps(told, protocol=2))


def npz(place: Path) -> None:
    np.savez(place / "a.npz", images=images(place), labels=np.arange(6))


def picture(place: Path) -> None:
    Image.fromarray(images(place)[0]).save(place / "a.png")


def official(place: Path) -> None:
    array = msgpack.ExtType(1, msgpack.packb([[2, 3], "float32", b"\0" * 24]))
    (place / "checkpoint_1").write_bytes(
        bytes(msgpack.packb({"ema_params": {"conv_in": {"kernel": array}}, "step": 1}) or b"")
    )


def read_official(place: Path) -> object:
    return import_checkpoint(place / "checkpoint_1", size=8, parameterization="x")


def recipe(place: Path) -> None:
    (place / "a.yaml").write_text(TINY)


def records(place: Path) -> None:
    quality = {
        "features": "pixels", "samples": 9, "frechet": 1.5, "frechet_low": 1.0, "frechet_high": 2.0, "kernel": 0.5,
        "kernel_spread": 0.1, "agreement": None, "warning": None,
    }  # fmt: skip
    line = {"model": "teacher", "steps": 4, "network_evaluations": 4, "seconds_per_image": 0.1, "rmse": 0.0}
    line |= {"training": {"updates": 1, "seconds": 1.0, "batch": 2}, "quality": [quality]}
    import json

    (place / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    (place / "metrics.jsonl").write_text('{"model": "teacher", "update": 1, "loss": 0.5, "learning_rate": 1}\n')
    (place / "recipe.yaml").write_text(TINY)


def report(place: Path) -> Path:
    return write_report(RunFolder(place))


KINDS = {
    "recipe": Kind("a.yaml", recipe, lambda place: read_recipe(str(place / "a.yaml"))),
    "progdist.json": Kind("model/progdist.json", model_folder, read_model, exact=True),
    "network config": Kind("model/unet/config.json", model_folder, read_model, exact=True),
    "weights": Kind("model/unet/diffusion_pytorch_model.safetensors", model_folder, read_model, exact=True),
    "model index": Kind("model_index.json", stock_folder, lambda place: read_teacher(str(place))),
    "scheduler config": Kind("scheduler/scheduler_config.json", stock_folder, lambda place: read_teacher(str(place))),
    "stock network config": Kind("unet/config.json", stock_folder, lambda place: read_teacher(str(place))),
    "checkpoint": Kind("00000010.safetensors", checkpoints, read_checkpoint, exact=True, refusable=False),
    "checkpoint's JSON": Kind("00000010.json", checkpoints, read_checkpoint, exact=True, refusable=False),
    "idx": Kind("train-images", idx, lambda place: load_images(f"idx:{place}")),
    "idx, gzipped": Kind("train-images.gz", idx_gz, lambda place: load_images(f"idx:{place}")),
    "CIFAR binary": Kind("data_batch_1.bin", cifar_binary, lambda place: load_images(f"cifar:{place}")),
    "CIFAR python": Kind("data_batch_1", cifar_python, lambda place: load_images(f"cifar:{place}")),
    "npz": Kind("a.npz", npz, lambda place: load_images(f"npz:{place}/a.npz")),
    "picture": Kind("a.png", picture, lambda place: load_images(f"folder:{place}")[0]),
    "official": Kind("checkpoint_1", official, read_official),
    "evaluations": Kind("evaluations.jsonl", records, report, part=0.05, refusable=False),
    "metrics": Kind("metrics.jsonl", records, report, part=0.05, refusable=False),
}


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
        place, length = draw.randrange(len(content) + 1), draw.randint(1, 64)
        before, after = content[:place], content[place:]
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


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", KINDS)
def test_whatever_is_in_a_file_is_refused_or_read(name: str, tmp_path: Path) -> None:
    kind, refused = KINDS[name], 0
    kind.make(tmp_path)
    path = tmp_path / kind.file
    whole = path.read_bytes()
    true = kind.read(tmp_path) if name != "official" else None

    @settings(
        max_examples=max(1, int(kind.part * FUZZ)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.integers(0, 2**40))
    def read(seed: int) -> None:
        nonlocal refused
        path.write_bytes(changed(whole, seed))
        started = time.monotonic()
        try:
            found = kind.read(tmp_path)
            assert not kind.exact or bool((found == true).all())
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
        assert time.monotonic() - started < SECONDS

    read()
    print(f"{name}: {refused} of {int(kind.part * FUZZ)} refused, the others read")
    assert refused or not kind.refusable


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
    kind = KINDS[name]
    kind.make(tmp_path)
    (tmp_path / kind.file).write_bytes(content)
    if name == "checkpoint's JSON":
        kind.read(tmp_path)  # the one before
        return
    with pytest.raises(UserError):
        kind.read(tmp_path)
    assert not (tmp_path / "HACKED").exists()


def test_an_array_that_claims_to_be_large(tmp_path: Path) -> None:
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 1000, 1000)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", header.getvalue() + b"\0" * 100)
    with pytest.raises(UserError, match="npz"):
        load_images(f"npz:{tmp_path}/a.npz")


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
    told = json.loads(path.read_text())
    told[field] = [2**16, 2**16] if field == "block_out_channels" else 10**9
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="restore"):
        read_teacher(str(tmp_path))


def test_an_index_of_weights_cannot_lead_outside(tmp_path: Path) -> None:
    import json

    stock_folder(tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.move(weights, tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}
    (weights.with_name(weights.name + ".index.json")).write_text(json.dumps(index))
    with pytest.raises(UserError, match="elsewhere"):
        read_teacher(str(tmp_path / "model"))
