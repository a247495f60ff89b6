"""Latents on disk: shared out, gone on with after an interruption, and mapped."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from progdist import UserError
from progdist.data import latents
from progdist.data.images import Images
from progdist.data.latents import LatentFolder
from progdist.data.sources import load_images
from progdist.teachers.open import open_teacher
from support.latent import distill_latent


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


def test_latents_of_other_data_are_refused(images: Images, tmp_path: Path) -> None:
    few, _ = images.split(1700, 0)
    LatentFolder(few, tmp_path / "a").prepare()
    LatentFolder(few, tmp_path / "a").encode(Halved())
    with pytest.raises(UserError, match="remove it to encode"):
        LatentFolder(images, tmp_path / "a").prepare()
    others = Images("others", len(few), few.get, few.labels, few.classes)
    with pytest.raises(UserError, match="does not hold the latents of the 97 images of others"):
        LatentFolder(others, tmp_path / "a").prepare()
    (tmp_path / "a" / "00000.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        LatentFolder(few, tmp_path / "a").open()


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
    assert (folder / "00000.safetensors").stat().st_mtime_ns == before
    assert found.shape == model.shape
    assert torch.equal(found.stratified_labels(9), images.stratified_labels(9))
