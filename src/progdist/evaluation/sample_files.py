"""Samples in files, for people and other evaluators: what `progdist sample` writes.

    samples.png             a grid near 4:3, its images enlarged by a whole factor where they are smaller than 64 pixels
    samples/                000000.png, 000001.png, ...: what torch-fidelity, clean-fid and pytorch-fid read
    samples.tar             the same files in one
    samples.npz             `arr_0`, bytes (N, H, W, C), and `arr_1`, labels (N,): what guided-diffusion reads
    samples.safetensors     `images`, float32 (N, C, H, W) in about [-1, 1], not rounded to bytes, and `labels` (N,)

Images are made in batches, shared by several processes, and kept as shards next to the file until all are there: work
that is interrupted resumes, and no process holds them all.
"""

import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist._utils.locks import LOCK_FILE, locked
from progdist._utils.signals import RESUME, Interrupted
from progdist._utils.words import counted
from progdist.data.grid import columns_for, enlargement, write_grid
from progdist.data.images import to_uint8
from progdist.data.shards import TensorShards
from progdist.evaluation.generate import Notify, SamplingOptions, check_images_finite, generate_batches
from progdist.models.model import Model
from progdist.teachers.own import load
from progdist.training.distributed import Distributed

MAX_GRID = 4096  # most images in a grid


def write_samples(
    folder: Path, options: SamplingOptions, out: Path, columns: int | None, notify: Notify, distributed: Distributed
) -> None:
    """Make images with the model of a folder, in batches shared by the processes, and write them.

    The suffix of `out` selects the layout; without one it is a folder. `columns` applies to a grid; the default brings
    it near 4:3.

    Raises:
        UserError: an unknown suffix, a grid that is too large, columns without a grid, an existing folder, another
            command that writes the same, samples that are not finite, or as in `generate_images`.
    """
    if out.suffix not in WRITERS:
        suffixes = ", ".join(suffix for suffix in WRITERS if suffix)
        raise UserError(f"--out {out} ends in {out.suffix}, expected a folder, or a name that ends in {suffixes}")
    if out.suffix != ".png" and columns is not None:
        raise UserError(f"--columns applies only to a grid, and --out {out} is not one: remove it, or give a .png")
    if out.suffix == ".png" and options.count > MAX_GRID:
        raise UserError(f"a grid has at most {MAX_GRID} images, got {options.count}: give --out a folder, or lower -n")
    if not out.suffix and out.exists():
        raise UserError(f"{out} exists: choose another folder, or remove it")
    model = load(folder)
    made = hashlib.sha256((folder / "progdist.json").read_bytes() + repr(options).encode()).hexdigest()
    shards = TensorShards(out.with_name(f".{out.name}.shards"), options.count, options.batch, made)
    labels, steps = options.labels_of(model), options.steps_of(model)
    if distributed.is_main_process:
        notify(f"sampling {counted(options.count, 'image')} in {counted(steps, 'step')}")
    with ExitStack() as stack:
        distributed.on_main_process(lambda: stack.enter_context(locked(shards.path, notify)))
        _make(model, options, shards, notify, distributed)
        said = distributed.on_main_process(lambda: WRITERS[out.suffix](shards, labels, out, columns))
        distributed.on_main_process(lambda: shutil.rmtree(shards.path))
    if distributed.is_main_process:
        notify(f"{counted(options.count, 'image')} in {counted(steps, 'step')}: {out}{said}")


def _make(
    model: Model, options: SamplingOptions, shards: TensorShards, notify: Notify, distributed: Distributed
) -> None:
    """Make the missing shards: refused samples leave none, a signal keeps those made so far, with a note."""

    def begin() -> None:
        """Create an empty folder of shards, unless it exists and holds the same samples."""
        if not shards.agrees():
            for path in shards.path.iterdir():
                if path.name != LOCK_FILE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            shards.write_index()

    def work(process: int, processes: int) -> None:
        """Make batches by number, so that all are made even if a process already sees another's."""
        absent = {number for number in shards.absent() if number % processes == process}
        batches, _ = generate_batches(model, options, notify, absent.__contains__)
        for number, images, _ in batches:
            check_images_finite(images, number * options.batch)
            shards.write(number, [images])

    try:
        distributed.on_main_process(begin)
        distributed.on_every_process(work)
    except UserError:
        shutil.rmtree(shards.path, ignore_errors=True)
        raise
    except (Interrupted, OSError) as error:
        if len(shards.absent()) == len(shards.spans()):  # nothing was made
            shutil.rmtree(shards.path, ignore_errors=True)
        else:
            error.add_note(RESUME)
        raise


def _bytes(shards: TensorShards) -> Iterator[NDArray[np.uint8]]:
    """Batches of bytes (B, H, W, C)."""
    return (to_uint8(shards.shard(number)) for number in range(len(shards.spans())))


def _grid(shards: TensorShards, labels: Tensor, out: Path, columns: int | None) -> str:
    images = shards.read(range(len(shards)))
    factor = enlargement(*images.shape[2:])
    write_grid(images, out, columns or columns_for(len(images), *images.shape[2:]), factor)
    return f", each pixel enlarged to {factor}x{factor}" if factor > 1 else ""


def _pngs(shards: TensorShards) -> Iterator[tuple[str, bytes]]:
    for number, pixels in enumerate(image for batch in _bytes(shards) for image in batch):
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
        yield f"{number:06d}.png", buffer.getvalue()


def _folder(shards: TensorShards, labels: Tensor, out: Path, columns: int | None) -> str:
    partial = shards.path / "images"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, content in _pngs(shards):
        (partial / name).write_bytes(content)
    partial.replace(out)
    return ""


def _tar(shards: TensorShards, labels: Tensor, out: Path, columns: int | None) -> str:
    partial = shards.path / out.name
    with tarfile.open(partial, "w") as file:
        for name, content in _pngs(shards):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    partial.replace(out)
    return ""


def _npz(shards: TensorShards, labels: Tensor, out: Path, columns: int | None) -> str:
    """Write batch by batch: `np.savez` would need all images at once."""
    partial = shards.path / out.name
    _, channels, height, width = shards.shard(0).shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(shards), height, width, channels)}
    with zipfile.ZipFile(partial, "w") as file:
        with file.open("arr_0.npy", "w", force_zip64=True) as array:
            np.lib.format.write_array_header_1_0(array, header)
            for batch in _bytes(shards):
                array.write(batch.tobytes())
        with file.open("arr_1.npy", "w") as array:
            np.lib.format.write_array(array, labels.numpy())
    partial.replace(out)
    return ""


def _tensors(shards: TensorShards, labels: Tensor, out: Path, columns: int | None) -> str:
    atomic_write(out, safetensors.torch.save({"images": shards.read(range(len(shards))), "labels": labels}))
    return ""


# each returns what there is to say of the file
WRITERS: dict[str, Callable[[TensorShards, Tensor, Path, int | None], str]] = {
    ".png": _grid, ".npz": _npz, ".tar": _tar, ".safetensors": _tensors, "": _folder,
}  # fmt: skip
