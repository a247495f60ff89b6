"""Latents on disk: shared out, gone on with after an interruption, and mapped."""

import copy
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import datasets.config
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from pyarrow import Table, parquet
from torch import Tensor

from progdist import UserError
from progdist.data import latents
from progdist.data.images import Images
from progdist.data.latents import LatentFolder
from progdist.data.sources import load_images
from progdist.models.autoencoder import Autoencoder
from progdist.teachers.open import open_teacher
from support.latent import AUTOENCODER, distill_latent


class Halved:
    """Stands for an autoencoder; counts what it was given, and fails when it has been given enough."""

    def __init__(self, enough: int = 10_000) -> None:
        self.given: list[int] = []
        self.enough = enough

    def encode(self, images: Tensor) -> Tensor:
        self.given.append(len(images))
        if sum(self.given) > self.enough:
            raise KeyboardInterrupt
        return images[..., ::2, ::2].contiguous()


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Images:
    monkeypatch.setattr(latents, "ROWS", 200)  # 1,797 digits in nine shards
    return load_images("digits")


def check(images: Images, folder: Path) -> None:
    found = LatentFolder(images, folder).open()
    assert isinstance(found, Images)
    assert (len(found), found.shape, found.classes) == (1797, (1, 4, 4), images.classes)
    for index in (0, 199, 200, 1000, 1796):
        x, label = images[index]
        assert torch.equal(found[index][0], x[:, ::2, ::2])
        assert found[index][1] == label


@pytest.mark.parametrize("processes", [1, 3])
def test_every_process_writes_its_shards(images: Images, tmp_path: Path, processes: int) -> None:
    assert LatentFolder(images, tmp_path).prepare() == 9
    encoders = [Halved() for _ in range(processes)]
    for process, encoder in enumerate(encoders):
        LatentFolder(images, tmp_path).encode(encoder, process, processes)
    counts = [sum(encoder.given) for encoder in encoders]
    assert sum(counts) == 1797
    assert max(counts) <= 600 * 3 // processes
    assert max(max(encoder.given) for encoder in encoders) <= 64
    check(images, tmp_path)


def test_what_was_interrupted_goes_on(images: Images, tmp_path: Path) -> None:
    LatentFolder(images, tmp_path).prepare()
    with pytest.raises(KeyboardInterrupt):
        LatentFolder(images, tmp_path).encode(Halved(enough=500))
    with pytest.raises(UserError, match="lacks 7 shards"):
        LatentFolder(images, tmp_path).open()
    assert LatentFolder(images, tmp_path).prepare() == 7
    LatentFolder(images, tmp_path).encode(rest := Halved(), 0, 1)
    assert sum(rest.given) == 1797 - 400
    check(images, tmp_path)


def test_latents_are_mapped_by_the_process_that_reads(images: Images, tmp_path: Path) -> None:
    """What workers are given is the place, not the latents."""
    LatentFolder(images, tmp_path).prepare()
    LatentFolder(images, tmp_path).encode(Halved())
    found = LatentFolder(images, tmp_path).open()
    for index in range(0, 1797, 100):
        _ = found[index]
    assert len(pickle.dumps(found.get)) < 2000


def pictures(folder: Path, levels: Sequence[int]) -> Images:
    folder.mkdir(exist_ok=True)
    for number, level in enumerate(levels):
        Image.new("L", (8, 8), level).save(folder / f"{number}.png")
    return load_images(f"folder:{folder}")


def encoded(images: Images, folder: Path, encoder: str = "") -> tuple[list[str], list[int]]:
    """What is told, and the level of each latent afterwards."""
    latents, notes = LatentFolder(images, folder, encoder=encoder), list[str]()
    latents.prepare(notes.append)
    latents.encode(Halved())
    found = latents.open()
    return notes, [round(127.5 * float(found[index][0].mean() + 1)) for index in range(len(found))]


def test_latents_of_other_images_are_made_again(tmp_path: Path) -> None:
    """What is read is the level of the picture that was written."""
    cache = tmp_path / "latents"
    assert encoded(pictures(tmp_path / "a", [10, 20, 30]), cache) == ([], [10, 20, 30])
    assert encoded(load_images(f"folder:{tmp_path}/a"), cache)[0] == []
    notes, levels = encoded(pictures(tmp_path / "a", [90, 80, 70]), cache)  # the same names, sizes and number
    assert levels == [90, 80, 70]
    assert len(notes) == 1
    assert "encoding" in notes[0]
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "9.png")
    assert encoded(load_images(f"folder:{tmp_path}/a"), cache)[1] == [80, 70, 90]
    for other in (
        load_images(f"folder:{tmp_path}/a", resample="bilinear"),
        load_images(f"folder:{tmp_path}/a", size=4),
    ):
        assert len(encoded(other, cache)[0]) == 1
    assert len(encoded(other, cache, encoder="another")[0]) == 1
    (cache / "00000.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        LatentFolder(other, cache).open()


def test_a_fingerprint_is_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes with the contents of arrays, tables and streams, and with nothing else."""

    def written(level: int) -> list[str]:
        pixels = np.full((3, 8, 8), level, np.uint8)
        np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(3))
        buffer = io.BytesIO()
        Image.fromarray(pixels[0]).save(buffer, "png")
        (tmp_path / "b").mkdir(exist_ok=True)
        parquet.write_table(Table.from_pydict({"image": [buffer.getvalue()] * 3}), tmp_path / "b" / "train.parquet")
        sources = [f"npz:{tmp_path}/a.npz", f"parquet:{tmp_path}/b", f"hub:{tmp_path}/b"]
        every = [load_images(source) for source in sources]
        return [images.fingerprint for images in (*every, every[0].subset(torch.tensor([0, 2])))]

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    first, again, other = written(1), written(1), written(2)
    assert first[:2] == again[:2]
    assert first[3] == again[3]
    assert len({*first, *other}) == 8


def test_the_fingerprint_of_an_autoencoder_is_of_its_weights_and_config() -> None:
    torch.manual_seed(0)
    network = AutoencoderKL(**AUTOENCODER)
    first = Autoencoder(network, "vae").fingerprint()
    assert Autoencoder(copy.deepcopy(network), "vae").fingerprint() == first
    scaled = copy.deepcopy(network)
    scaled.register_to_config(scaling_factor=1.0)
    with torch.no_grad():
        next(network.parameters())[..., 0, 0] += 1
    assert len({first, Autoencoder(network, "vae").fingerprint(), Autoencoder(scaled, "vae").fingerprint()}) == 3


@pytest.mark.slow
def test_the_data_are_encoded_once(latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distill_latent(latent, tmp_path / "out")
    folder = tmp_path / "out" / "latents"
    before = (folder / "00000.safetensors").stat().st_mtime_ns
    model = open_teacher(str(latent)).model
    assert model.autoencoder is not None
    monkeypatch.setattr(type(model.autoencoder), "encode", lambda self, images: pytest.fail("encoded again"))
    distill_latent(latent, tmp_path / "out")
    images = load_images("digits")
    found = LatentFolder(images, folder).open()
    assert isinstance(found, Images)
    assert (folder / "00000.safetensors").stat().st_mtime_ns == before
    assert found.shape == model.shape
    assert torch.equal(found.stratified_labels(9), images.stratified_labels(9))
