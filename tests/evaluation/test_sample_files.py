"""Samples in files: the same images in every layout, whole or absent, shared by processes and resumed."""

import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from progdist import Denoiser, UserError
from progdist._utils.signals import RESUME, Interrupted
from progdist.data.images import to_uint8
from progdist.data.shards import TensorShards
from progdist.data.sources import load_images
from progdist.evaluation import sample_files
from progdist.evaluation.generate import SamplingOptions, generate_batches, generate_images
from progdist.evaluation.sample_files import write_samples
from progdist.models.conditioning import Classes
from progdist.models.model import Model
from progdist.students.folder import save
from progdist.teachers.own import load
from progdist.training.distributed import Distributed

OPTIONS = SamplingOptions(2, 11, None, seed=3, method="ancestral", batch=4)


@pytest.fixture
def folder(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> Path:
    save(Model(tiny_model(classes=3), (2,), (4,), Classes(("a", "b", "c"))), tmp_path / "model")
    return tmp_path / "model"


def written(folder: Path, out: Path, options: SamplingOptions = OPTIONS, distributed: Any = None) -> None:  # noqa: ANN401
    write_samples(folder, options, out, None, lambda text: None, distributed or Distributed())


@pytest.mark.parametrize("name", ["a", "a.tar", "a.npz", "a.safetensors"])
def test_columns_are_of_a_grid(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"--columns applies only to a grid, and --out .*{name} is not one: remove it"):
        write_samples(folder, OPTIONS, tmp_path / name, 3, print, Distributed())


def read_pngs(names: list[Path]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(name)) for name in names])[..., None]


def test_every_layout_holds_the_same_images(folder: Path, tmp_path: Path) -> None:
    images, labels, _ = generate_images(load(folder), OPTIONS, print)
    pixels, out = to_uint8(images), tmp_path / "out"
    for name in ("a.safetensors", "a.npz", "a.tar", "a", "a.png"):
        written(folder, out / name)
    exact = load_file(out / "a.safetensors")
    assert torch.equal(exact["images"], images)
    assert torch.equal(exact["labels"], labels)
    arrays = np.load(out / "a.npz")
    np.testing.assert_array_equal(arrays["arr_0"], pixels)
    np.testing.assert_array_equal(arrays["arr_1"], labels)
    names = [f"{number:06d}.png" for number in range(11)]
    assert sorted(path.name for path in (out / "a").iterdir()) == names
    np.testing.assert_array_equal(read_pngs([out / "a" / name for name in names]), pixels)
    with tarfile.open(out / "a.tar") as file:
        file.extractall(tmp_path / "tar", filter="data")
    np.testing.assert_array_equal(read_pngs([tmp_path / "tar" / name for name in names]), pixels)
    assert sorted(path.name for path in out.iterdir()) == ["a", "a.npz", "a.png", "a.safetensors", "a.tar"]
    read = load_images(f"npz:{out / 'a.npz'}")  # what is written can be read as data
    assert (len(read), read.shape, len(read.classes)) == (11, (1, 8, 8), 3)


def test_what_was_interrupted_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, tmp_path / "whole.npz")
    made: list[int] = []
    original = generate_batches

    def spy(*arguments: Any) -> Any:  # noqa: ANN401
        batches, steps = original(*arguments)

        def counted() -> Any:  # noqa: ANN401
            for number, images, labels in batches:
                made.append(number)
                yield number, images, labels
                if len(made) == 2:
                    raise KeyboardInterrupt

        return counted(), steps

    monkeypatch.setattr(sample_files, "generate_batches", spy)
    with pytest.raises(KeyboardInterrupt):
        written(folder, tmp_path / "parts.npz")
    assert not (tmp_path / "parts.npz").exists()
    written(folder, tmp_path / "parts.npz")
    assert made == [0, 1, 2]
    assert (tmp_path / "parts.npz").read_bytes()[:10] == (tmp_path / "whole.npz").read_bytes()[:10]
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("whole", "parts")))


def test_shards_of_other_samples_are_not_taken(folder: Path, tmp_path: Path) -> None:
    partial = TensorShards(tmp_path / ".a.npz.shards", 11, 4, "others")
    partial.write_index()
    partial.write(0, [torch.zeros(4, 1, 8, 8)])
    written(folder, tmp_path / "a.npz")
    assert np.load(tmp_path / "a.npz")["arr_0"][:4].any()


def test_processes_share_the_batches(folder: Path, tmp_path: Path) -> None:
    """Each makes its own batches, and together they make what one makes."""
    written(folder, tmp_path / "one.npz")
    shares: list[list[int]] = []

    def every(work: Callable[[int, int], None]) -> None:
        partial = tmp_path / ".two.npz.shards"
        for process in (0, 1):
            before = set(partial.glob("0*"))
            work(process, 2)
            shares.append(sorted(int(path.stem) for path in set(partial.glob("0*")) - before))

    both = SimpleNamespace(on_main_process=lambda find: find(), on_every_process=every, is_main_process=True)
    written(folder, tmp_path / "two.npz", distributed=cast(Distributed, both))
    assert shares == [[0, 2], [1]]
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("one", "two")))


def test_a_process_that_comes_late_leaves_nothing_out(folder: Path, tmp_path: Path) -> None:
    """It lists what is absent when the other's batches are there already."""
    written(folder, tmp_path / "one.npz")

    def process(number: int, then: Callable[[], None]) -> Any:  # noqa: ANN401
        def every(work: Callable[[int, int], None]) -> None:
            work(number, 2)
            then()

        first = number == 0
        return SimpleNamespace(
            on_main_process=lambda find: find() if first else None, on_every_process=every, is_main_process=first
        )

    out = tmp_path / "two.npz"
    late = process(1, lambda: None)
    written(folder, out, distributed=process(0, lambda: written(folder, out, distributed=late)))
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("one", "two")))


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    many = SamplingOptions(2, 5000, None, seed=3)
    for out, options, message in (
        (
            tmp_path / "a.jpg",
            OPTIONS,
            "ends in .jpg, expected a folder, or a name that ends in .png, .npz, .tar, .safetensors",
        ),
        (tmp_path / "there", OPTIONS, "choose another folder"),
        (tmp_path / "a.png", many, "a grid has at most 4096 images, got 5000"),
        (tmp_path / "a.npz", SamplingOptions(2, 4, 7, seed=3), "label 7 is out of range"),
    ):
        with pytest.raises(UserError, match=message):
            written(folder, out, options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there"]


@pytest.mark.parametrize("name", ["a.png", "a.npz", "a"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    original = generate_batches

    def spoiled(*arguments: Any) -> Any:  # noqa: ANN401
        batches, steps = original(*arguments)

        def some() -> Any:  # noqa: ANN401
            for number, images, labels in batches:
                images[1:3, 0, 5, 5] = value if number == 1 else 0.0
                yield number, images, labels

        return some(), steps

    monkeypatch.setattr(sample_files, "generate_batches", spoiled)
    with pytest.raises(UserError, match="image 5 and 1 more of 4 are not finite"):
        written(folder, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_commands_do_not_share_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the same command nor one of other images; the one at work ends as if there had been no other."""
    written(folder, tmp_path / "alone.npz")
    others = [OPTIONS, SamplingOptions(2, 5, None, seed=4, batch=4)]
    original = generate_batches

    def interleaved(*arguments: Any) -> Any:  # noqa: ANN401
        while others:
            with pytest.raises(UserError, match=r"shards is in use by process \d+ on .*: wait for it, stop it, or"):
                written(folder, tmp_path / "a.npz", others.pop())
        return original(*arguments)

    monkeypatch.setattr(sample_files, "generate_batches", interleaved)
    written(folder, tmp_path / "a.npz")
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("alone", "a")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "alone.npz", "model"]


def test_what_is_kept_of_an_interrupted_command_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(number: int) -> list[str]:
        write = TensorShards.write

        def until(self: TensorShards, index: int, parts: Any) -> None:  # noqa: ANN401
            if index == number:
                raise Interrupted(signal.SIGINT)
            write(self, index, parts)

        with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
            patch.setattr(TensorShards, "write", until)
            written(folder, tmp_path / "a.npz")
        return getattr(caught.value, "__notes__", [])

    assert stopped(0) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert stopped(2) == [RESUME]
