"""Where the weights of networks come from: a named file or folder, or the cache. Nothing is fetched.

The cache is $PROGDIST_CACHE, or ~/.cache/progdist; beside it the caches of torch.hub and of the Hugging Face hub are
looked at, where other programs put the same files.
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
from progdist._utils.files import checksum

Network = TypeVar("Network")

SAFETENSORS = "model.safetensors"


@dataclass(frozen=True)
class Published:
    """Weights as they are published: a file with a known SHA-256, or a folder of the Hugging Face hub.

    Attributes:
        name: of the file or folder in the cache.
        address: where to fetch it.
        sha256: of the file; empty for a folder.
        repository: on the hub; empty for a file.
    """

    name: str
    address: str
    sha256: str = ""
    repository: str = ""


INCEPTION = Published(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


def _on_the_hub(repository: str) -> Published:
    return Published(repository.rpartition("/")[2], f"https://huggingface.co/{repository}", repository=repository)


WEIGHTS: dict[str, Published] = {
    "inception": INCEPTION,
    "dinov2": _on_the_hub("facebook/dinov2-large"),
    "clip": _on_the_hub("openai/clip-vit-large-patch14"),
}
"""What can be named, e.g. with --weights inception=FILE."""


@dataclass(frozen=True)
class Weights:
    """Weights that were found: their file or folder, its SHA-256, and what is to be said of them."""

    path: Path
    sha256: str
    warning: str | None = None


def find_weights(name: str, given: Mapping[str, Path]) -> Weights:
    """The weights of a network of WEIGHTS: those given, or those in a cache.

    Raises:
        UserError: they are missing, or those in a cache are damaged.
    """
    published = WEIGHTS[name]
    if name in given:
        path = given[name].expanduser()
        file = path if published.sha256 else path / SAFETENSORS
        if not file.is_file():
            raise UserError(f"weights {name}={given[name]}: there is no file {file}: {_remedy(name, published)}")
        found = checksum(file)
        strange = published.sha256 not in ("", found)
        return Weights(
            path, found, f"{file} is not {published.name}: compare no published numbers" if strange else None
        )
    for path in (cache() / published.name, *_elsewhere(published)):
        file = path if published.sha256 else path / SAFETENSORS
        if file.is_file():
            found = checksum(file)
            if published.sha256 not in ("", found):
                raise UserError(f"{file} has SHA-256 {found[:8]}..., not {published.sha256[:8]}...: fetch it again")
            return Weights(path, found)
    raise UserError(f"{name} needs weights that are not here: {_remedy(name, published)}")


def cache() -> Path:
    """The folder in which weights are looked for."""
    return Path(os.environ.get("PROGDIST_CACHE") or "~/.cache/progdist").expanduser()


def _remedy(name: str, published: Published) -> str:
    kind = f"file {published.address}" if published.sha256 else f"folder {published.address} ({SAFETENSORS} and *.json)"
    return f"fetch the {kind} and put it at {cache() / published.name}, or name it with --weights {name}=PATH"


def _elsewhere(published: Published) -> list[Path]:
    """Where torch-fidelity, pytorch-fid and transformers keep the same weights."""
    if published.sha256:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return [folder / published.name, folder / published.name.replace("weights", "pt", 1)]
    try:
        return [Path(snapshot_download(published.repository, local_files_only=True))]
    except LocalEntryNotFoundError:
        return []


def read_folder(load: Callable[[Path], Network], weights: Weights) -> Network:
    """A network of a folder, by `load`.

    Raises:
        UserError: the folder is damaged.
    """
    try:
        return load(weights.path)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(
            f"{weights.path} cannot be read ({' '.join(str(error).split())[:200]}): fetch it anew"
        ) from error
