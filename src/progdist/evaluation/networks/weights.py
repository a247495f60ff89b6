"""Find the weights of networks: a given file or folder, or the cache. Nothing is downloaded.

The cache is $PROGDIST_CACHE, or ~/.cache/progdist; the caches of torch.hub and of the Hugging Face hub are searched,
too, where other programs put the same files.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from progdist._utils.errors import UserError
from progdist._utils.files import checksum, local_path

Network = TypeVar("Network")

SAFETENSORS = "model.safetensors"
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Published:
    """Published weights: a file with its SHA-256, or a folder of the Hugging Face hub."""

    name: str  # of the file or folder in the cache
    address: str  # where to fetch it
    sha256: str = ""  # of the file; empty for a folder


INCEPTION = Published(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
WEIGHTS = {  # names for e.g. --weights inception=FILE
    "inception": INCEPTION,
    "dinov2": Published("dinov2-large", HUB + "facebook/dinov2-large"),
    "clip": Published("clip-vit-large-patch14", HUB + "openai/clip-vit-large-patch14"),
}


@dataclass(frozen=True)
class Weights:
    """Weights on this machine: their file or folder, its SHA-256, and a warning about them."""

    path: Path
    sha256: str
    warning: str | None = None


def find_weights(name: str, files: Mapping[str, Path]) -> Weights:
    """The weights of a network of WEIGHTS in a given file or folder, or in a cache. Raise a UserError without them."""
    published = WEIGHTS[name]
    places = [local_path(files[name])] if name in files else [cache() / published.name, *_elsewhere(published)]
    for path in places:
        file = path if published.sha256 else path / SAFETENSORS
        if not file.is_file():
            continue
        sha256 = checksum(file)
        if published.sha256 in ("", sha256):
            return Weights(path, sha256)
        if name in files:
            return Weights(path, sha256, f"{file} is not {published.name}: do not compare with published numbers")
        raise UserError(f"{file} has SHA-256 {sha256[:8]}..., expected {published.sha256[:8]}...: fetch it again")
    if name in files:
        file = places[0] if published.sha256 else places[0] / SAFETENSORS
        raise UserError(f"weights {name}={files[name]}: there is no file {file}: {_remedy(name, published)}")
    raise UserError(f"{name} requires weights that were not found: {_remedy(name, published)}")


def cache() -> Path:
    """The folder to search for weights."""
    return Path(os.environ.get("PROGDIST_CACHE") or "~/.cache/progdist").expanduser()


def _remedy(name: str, published: Published) -> str:
    kind = f"file {published.address}" if published.sha256 else f"folder {published.address} ({SAFETENSORS} and *.json)"
    return f"fetch the {kind} and put it at {cache() / published.name}, or set weights {name}=PATH"


def _elsewhere(published: Published) -> list[Path]:
    """Where torch-fidelity, pytorch-fid and transformers keep the same weights."""
    if published.sha256:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return [folder / published.name, folder / published.name.replace("weights", "pt", 1)]
    try:
        return [Path(snapshot_download(published.address.removeprefix(HUB), local_files_only=True))]
    except LocalEntryNotFoundError:
        return []


def read_folder(load: Callable[[Path], Network], weights: Weights) -> Network:
    """Read a network from a folder with `load`. Raise a UserError if the folder is damaged."""
    try:
        return load(weights.path)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(
            f"{weights.path} cannot be read ({' '.join(str(error).split())[:200]}): fetch it again"
        ) from error
