"""Every kind of file that is read: how one is written, and what reads it."""

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from PIL import Image

import progdist
from progdist import Cosine, Denoiser
from progdist.data.sources import load_images
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.models.unet import unet
from progdist.recipes.files import read_recipe
from progdist.runs.folder import RunFolder
from progdist.runs.pages.report import write_report
from progdist.teachers.jax import import_checkpoint
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from progdist.training.checkpoint import Checkpoint, Checkpoints
from support.commands import TINY
from support.latent import save_dit
from support.stock import stock_network
from support.text import write_sd


@dataclass(frozen=True)
class Case:
    """A kind of file: the file within a folder that is changed, and what reads the folder.

    `exact` says that whatever is read must be what was written, which checksums promise, `part` of FUZZ is how often it
    is tried, and `refusable` that some changes are to be refused.
    """

    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    exact: bool = False
    part: float = 1.0
    refusable: bool = True


def model_folder(folder: Path) -> None:
    torch.manual_seed(0)
    network = unet(image=(1, 8, 8), width=4, multipliers=(1,), groups=4)
    progdist.save(Denoiser(network, Cosine(), PARAMETERIZATIONS["v"]), folder / "model", steps=[4])


def read_model(folder: Path) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in load(folder / "model").denoiser.parameters()]).detach()


def stock_folder(folder: Path) -> None:
    DDPMPipeline(stock_network(), DDPMScheduler()).save_pretrained(folder)


def flow_folder(folder: Path) -> None:
    DDPMPipeline(stock_network(classes=4), FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)  # pyright: ignore


def solver_folder(folder: Path) -> None:
    DDPMPipeline(stock_network(), UniPCMultistepScheduler()).save_pretrained(folder)  # pyright: ignore


def sharded_folder(folder: Path) -> None:
    DDPMPipeline(stock_network(), DDPMScheduler()).save_pretrained(folder, max_shard_size="20KB")


def read_stock(folder: Path) -> object:
    return open_teacher(str(folder))


def read_prompt(folder: Path) -> object:
    """What the network is told of a prompt, by the pipeline's own text encoder."""
    return open_teacher(str(folder)).model.conditions(None, ["a seven"])


def checkpoints(folder: Path) -> None:
    for update in (5, 10):
        Checkpoints(folder).save(Checkpoint(update, {"w": torch.full((50,), 1.0)}, {"seconds": 1.5}))


def read_checkpoint(folder: Path) -> Any:  # noqa: ANN401
    latest = Checkpoints(folder).latest()
    assert latest is not None  # the one before is whole
    return latest.tensors["w"]


def images(folder: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 255, (6, 8, 8), dtype=np.uint8)


def idx(folder: Path) -> None:
    (folder / "train-images").write_bytes(b"\0\0\x08\3" + struct.pack(">3I", 6, 8, 8) + images(folder).tobytes())


def idx_gz(folder: Path) -> None:
    idx(folder)
    (folder / "train-images.gz").write_bytes(gzip.compress((folder / "train-images").read_bytes(), mtime=0))
    (folder / "train-images").unlink()


def cifar_binary(folder: Path) -> None:
    (folder / "data_batch_1.bin").write_bytes(bytes(range(256)) * 12 + b"\1")


def cifar_python(folder: Path) -> None:
    content = {b"labels": [1, 2], b"data": np.zeros((2, 3072), np.uint8)}
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))


def npz(folder: Path) -> None:
    np.savez(folder / "a.npz", images=images(folder), labels=np.arange(6))


def picture(folder: Path) -> None:
    Image.fromarray(images(folder)[0]).save(folder / "a.png")


def tar(folder: Path) -> None:
    """Images and labels; the name of one is longer than a header holds, and one has letters beyond ASCII."""
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as file:
        for key in ("0", "a" * 120, "\u00e9"):
            for suffix, content in (("png", png(folder)), ("cls", b"1")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def png(folder: Path) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(images(folder)[0]).save(buffer, "png")
    return buffer.getvalue()


def read_tar(folder: Path) -> object:
    found = load_images(f"wds:{folder}")
    return [found[row] for row in range(len(found))]


def picture_as(kind: str) -> Callable[[Path], None]:
    return lambda folder: Image.fromarray(images(folder)[0]).save(folder / f"a.{kind}")


def official(folder: Path) -> None:
    array = msgpack.ExtType(1, msgpack.packb([[2, 3], "float32", b"\0" * 24]))
    (folder / "checkpoint_1").write_bytes(
        bytes(msgpack.packb({"ema_params": {"conv_in": {"kernel": array}}, "step": 1}) or b"")
    )


def read_official(folder: Path) -> object:
    return import_checkpoint(folder / "checkpoint_1", size=8, parameterization="x")


def recipe(folder: Path) -> None:
    (folder / "a.yaml").write_text(TINY)


def records(folder: Path) -> None:
    quality = {
        "features": "pixels", "samples": 9, "frechet": 1.5, "frechet_low": 1.0, "frechet_high": 2.0, "kernel": 0.5,
        "kernel_spread": 0.1, "agreement": None, "warning": None, "interval": "bootstrap",
    }  # fmt: skip
    line: dict[str, Any] = {"model": "teacher", "steps": 4, "method": "ddim", "network_evaluations": 4}
    line |= {"seconds_per_image": 0.1, "rmse": 0.0}
    line |= {"training": {"updates": 1, "seconds": 1.0, "batch": 2}, "quality": [quality]}
    run = RunFolder(folder)
    run.append("evaluations", line)
    run.append("metrics", {"model": "teacher", "update": 1, "loss": 0.5, "learning_rate": 1})
    (folder / "recipe.yaml").write_text(TINY)


def report(folder: Path) -> Path:
    return write_report(RunFolder(folder))


CASES = {
    "recipe": Case("a.yaml", recipe, lambda folder: read_recipe(str(folder / "a.yaml"))),
    "progdist.json": Case("model/progdist.json", model_folder, read_model, exact=True),
    "network config": Case("model/unet/config.json", model_folder, read_model, exact=True),
    "weights": Case("model/unet/diffusion_pytorch_model.safetensors", model_folder, read_model, exact=True),
    "model index": Case("model_index.json", stock_folder, read_stock),
    "scheduler config": Case("scheduler/scheduler_config.json", stock_folder, read_stock),
    "solver config": Case("scheduler/scheduler_config.json", solver_folder, read_stock),
    "flow config": Case("scheduler/scheduler_config.json", flow_folder, read_stock),
    "stock network config": Case("unet/config.json", stock_folder, read_stock),
    "index of shards": Case("unet/diffusion_pytorch_model.safetensors.index.json", sharded_folder, read_stock),
    "transformer config": Case("transformer/config.json", save_dit, read_stock, part=0.5),
    "autoencoder config": Case("vae/config.json", save_dit, read_stock, part=0.5),
    "text pipeline index": Case("model_index.json", write_sd, read_prompt, part=0.25),
    "text network config": Case("unet/config.json", write_sd, read_stock, part=0.25),
    "text encoder config": Case("text_encoder/config.json", write_sd, read_prompt, part=0.25),
    "tokenizer config": Case("tokenizer/tokenizer_config.json", write_sd, read_prompt, part=0.25),
    "tokenizer": Case("tokenizer/tokenizer.json", write_sd, read_prompt, part=0.25),
    "checkpoint": Case("00000010.safetensors", checkpoints, read_checkpoint, exact=True, refusable=False),
    "checkpoint's JSON": Case("00000010.json", checkpoints, read_checkpoint, exact=True, refusable=False),
    "idx": Case("train-images", idx, lambda folder: load_images(f"idx:{folder}")),
    "idx, gzipped": Case("train-images.gz", idx_gz, lambda folder: load_images(f"idx:{folder}")),
    "CIFAR binary": Case("data_batch_1.bin", cifar_binary, lambda folder: load_images(f"cifar:{folder}")),
    "CIFAR python": Case("data_batch_1", cifar_python, lambda folder: load_images(f"cifar:{folder}")),
    "npz": Case("a.npz", npz, lambda folder: load_images(f"npz:{folder}/a.npz")),
    "tar": Case("a.tar", tar, read_tar),
    "picture": Case("a.png", picture, lambda folder: load_images(f"folder:{folder}")[0]),
    "GIF": Case("a.gif", picture_as("gif"), lambda folder: load_images(f"folder:{folder}")[0], part=0.3),
    "AVIF": Case("a.avif", picture_as("avif"), lambda folder: load_images(f"folder:{folder}")[0], part=0.3),
    "official": Case("checkpoint_1", official, read_official),
    "evaluations": Case("evaluations.jsonl", records, report, part=0.05, refusable=False),
    "metrics": Case("metrics.jsonl", records, report, part=0.05, refusable=False),
}
