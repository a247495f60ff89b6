"""Labels: numbers are themselves, names are numbered, and what is no class is told, in every source alike."""

import io
import json
import tarfile
from collections.abc import Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import Table, array, parquet

from progdist import UserError
from progdist.data.images import Images
from progdist.data.labels import number_classes, read_labels, stratified
from progdist.data.sources import load_images


def png(level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "png")
    return buffer.getvalue()


def class_folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(png())
    return f"folder:{root}"


def hub(root: Path, labels: Sequence[Any], kind: object) -> str:
    rows = {"image": [{"bytes": png(), "path": None}] * len(labels), "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    datasets.Dataset.from_dict(rows, features).to_parquet(str(root / "train.parquet"))
    return f"hub:{root}"


def table(root: Path, labels: Sequence[Any]) -> str:
    columns = {"image": [{"bytes": png(), "path": None}] * len(labels), "label": array(labels)}
    parquet.write_table(Table.from_pydict(columns), root / "a.parquet")
    return f"parquet:{root}"


def tar(root: Path, labels: Sequence[bytes | None]) -> str:
    with tarfile.open(root / "a.tar", "w") as file:
        for number, label in enumerate(labels):
            for suffix, content in (("png", png()), ("cls", label)):
                if content is not None:
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return f"wds:{root}/a.tar"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


@pytest.mark.parametrize("names", [[str(number) for number in range(12)], ["3", "7"], ["1", "2"], ["007", "010"]])
def test_folders_of_numbers_are_the_classes_of_those_numbers(tmp_path: Path, names: list[str]) -> None:
    images = load_images(class_folders(tmp_path, *names))
    assert sorted(labels_of(images)) == sorted(map(int, names))
    assert images.classes == tuple(str(number) for number in range(max(map(int, names)) + 1))
    gaps = sorted({*range(max(map(int, names)))} - {*map(int, names)})
    assert [f"without images of {gaps[0]}" in note for note in images.notes] == [True] * bool(gaps)


def test_folders_of_names_and_of_long_numbers_are_numbered_in_order(tmp_path: Path) -> None:
    mixed = load_images(class_folders(tmp_path / "mixed", "10", "9", "cat"))
    assert (mixed.classes, labels_of(mixed)) == (tuple(np.unique(["10", "9", "cat"])), [0, 1, 2])
    dates = load_images(class_folders(tmp_path / "dates", "20240131", "9990101"))
    assert dates.classes == ("9990101", "20240131")
    assert [dates.classes[label] for label in labels_of(dates)] == ["20240131", "9990101"]  # as the files are sorted
    with pytest.raises(UserError, match=r"01 and 1 are the same number|1 and 01 are the same number"):
        load_images(class_folders(tmp_path / "twice", "01", "1"))
    with pytest.raises(UserError, match="class -1 is negative"):
        load_images(class_folders(tmp_path / "negative", "-1", "0", "1"))
    assert number_classes(["²", "1"]) == {"1": 0, "²": 1}  # no decimal digits of ASCII


TEXT = ["dog", "cat", "dog", "ant"]


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (TEXT, datasets.Value("string"), np.unique(TEXT, return_inverse=True)),
        (["1.0", "0.0", "2.0", "2.0"], datasets.Value("string"), (list("012"), [1, 0, 2, 2])),
        (["10", "9", "0", "9"], datasets.Value("string"), ([str(number) for number in range(11)], [10, 9, 0, 9])),
        ([0.0, 2.0, 1.0, 2.0], datasets.Value("float32"), (list("012"), [0, 2, 1, 2])),
        ([Decimal(2), Decimal("0.0"), Decimal(1)], datasets.Value("decimal128(3, 1)"), (list("012"), [2, 0, 1])),
        ([True, False, True, False], datasets.Value("bool"), (list("01"), [1, 0, 1, 0])),
        ([[1], [0], [1], [1]], datasets.List(datasets.Value("int64")), (list("01"), [1, 0, 1, 1])),
        ([1, 0, 1, 1], datasets.ClassLabel(names=["dog", "cat", "ant"]), (["dog", "cat", "ant"], [1, 0, 1, 1])),
    ],
)
def test_a_column_of_labels_of_any_kind(
    tmp_path: Path, labels: Sequence[Any], kind: object, expected: tuple[Any, Any]
) -> None:
    source = hub(tmp_path, labels, kind)
    for images in (load_images(source), load_images(f"parquet:{tmp_path}")):  # the same, in memory and as a stream
        assert images.classes == tuple(expected[0])
        assert labels_of(images) == list(expected[1])


@pytest.mark.parametrize(
    ("labels", "kind", "found"),
    [
        ([[0, 1], [1], [0], [0]], datasets.List(datasets.Value("int64")), "row 0 has a list of 2"),
        ([0.0, 0.5, 1.0, 1.0], datasets.Value("float64"), "row 1 has the number 0.5"),
        ([{"a": 1}] * 4, {"a": datasets.Value("int64")}, "row 0 has a dict"),
        ([{"bytes": png(), "path": None}] * 4, datasets.Image(), "row 0 has a dict"),
        ([None] * 4, datasets.Value("int64"), None),
    ],
)
def test_what_is_no_class_is_passed_over_and_told(
    tmp_path: Path, labels: Sequence[Any], kind: object, found: str | None
) -> None:
    source = hub(tmp_path, labels, kind)
    for images in (load_images(source), load_images(f"parquet:{tmp_path}")):
        assert (images.labels, images.classes) == (None, ())
        assert [found is not None and found in note for note in images.notes] == [True] * (found is not None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1, None], "2 of 4 images have no label, the first is .*row 1"),
        ([0.0, float("nan"), 1.0], "1 of 3 images have no label, the first is .*row 1"),
        (["cat", "", "dog"], "1 of 3 images have no label, the first is .*row 1"),
        ([0, -1, 1], "row 1 has label -1, expected labels from 0"),
        ([0, 2**40], "row 1 has label 1099511627776, beyond"),
    ],
)
def test_labels_that_lack_or_are_out_of_range_are_one_line(tmp_path: Path, labels: Sequence[Any], message: str) -> None:
    source = table(tmp_path, labels)
    for each in (source, f"hub:{tmp_path}"):
        with pytest.raises(UserError, match=message) as error:
            load_images(each)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0.0, 2.0, 1.0]), [0, 2, 1]),
        (np.array([[2], [0], [1]], np.int16), [2, 0, 1]),
        (np.array([True, False, True]), [1, 0, 1]),
        (np.array(TEXT[:3]), np.unique(TEXT[:3], return_inverse=True)[1]),
        (np.eye(3), None),
        (np.array([0.5, 1, 2]), None),
    ],
)
def test_labels_of_arrays(tmp_path: Path, labels: NDArray[Any], expected: Sequence[int] | None) -> None:
    grey = np.array([0, 99, 255], np.uint8)[:, None, None]
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8) + grey, labels=labels)
    read = load_images(f"npz:{tmp_path}/a.npz")
    assert (read.labels is None) == (expected is None) == bool(read.notes)
    if expected is not None:
        assert labels_of(read) == list(expected)


def test_labels_beyond_their_names_and_of_two_kinds() -> None:
    with pytest.raises(UserError, match="image 1 has label 2, but there are names for 2 classes"):
        read_labels([0, 2], "image {}".format, ["a", "b"])
    with pytest.raises(UserError, match=r"numbers and names .3 of image 0, 'cat' of image 1"):
        read_labels([3, "cat"], "image {}".format)


def test_what_a_cls_file_says(tmp_path: Path) -> None:
    assert labels_of(load_images(tar(tmp_path, [b"3\n", b" 0", b"3"]))) == [3, 0, 3]
    names = load_images(tar(tmp_path, [b"dog", b"cat", b"dog"]))
    assert (names.classes, labels_of(names)) == (("cat", "dog"), [1, 0, 1])
    stream = names.walk(3, range(1), (0, 1), (0, 1), (0, 0))  # pyright: ignore[reportAttributeAccessIssue]
    _, seen = next(islice(stream, 1))
    assert sorted(label for _, label in seen) == [0, 1, 1]
    assert load_images(tar(tmp_path, [None, None])).labels is None
    with pytest.raises(UserError, match=r"a\.tar: 1\.cls is .*expected a class number or name"):
        load_images(tar(tmp_path, [b"1", b"\x80\x01"]))
    with pytest.raises(UserError, match=r"1 of 2 images have no label, the first is .*a\.tar: 1\b"):
        load_images(tar(tmp_path, [b"1", None]))


def test_names_that_datasets_keeps_with_a_parquet_file_may_be_damaged(tmp_path: Path) -> None:
    source = table(tmp_path, [0, 1])
    for kept in (b"{", b"[]", json.dumps({"info": {"features": {"label": {"names": 3}}}}).encode()):
        damaged = parquet.read_table(tmp_path / "a.parquet").replace_schema_metadata({b"huggingface": kept})
        parquet.write_table(damaged, tmp_path / "a.parquet")
        assert load_images(source).classes == ("0", "1")


@pytest.mark.parametrize("training", ["train", "Training", "train2017", "train_images"])
def test_of_a_root_with_parts_the_training_part_is_read(tmp_path: Path, training: str) -> None:
    source = class_folders(tmp_path, f"{training}/cat", f"{training}/dog", "val/cat", "val/dog", "test/cat")
    images = load_images(source)
    assert (images.classes, labels_of(images), len(images)) == (("cat", "dog"), [0, 1], 2)
    assert images.notes == (f"{source}: the images of {training}/ are read, not those of test, val",)
    assert len(load_images(f"{source}/val")) == 2  # a part that is named is taken


def test_parts_are_told_from_classes(tmp_path: Path) -> None:
    vehicles = load_images(class_folders(tmp_path / "vehicles", "train", "bus"))
    assert vehicles.classes == ("bus", "train")
    assert "train is read as a class: if it is a split, give its folder" in vehicles.notes[0]
    assert not load_images(class_folders(tmp_path / "plain", "bus", "trains")).notes
    flat = load_images(class_folders(tmp_path / "flat", "train", "val"))
    assert (len(flat), flat.classes) == (1, ())
    with pytest.raises(UserError, match="has the splits test, val: name the one to train on"):
        load_images(class_folders(tmp_path / "none", "test/cat", "val/cat"))


@pytest.mark.parametrize(
    ("folders", "classes", "count"),
    [
        (("images/train/cat", "images/train/dog", "images/val/cat"), ("cat", "dog"), 2),
        (("images/train", "images/val"), (), 1),
        (("deep/images/train/cat", "deep/images/test/cat"), ("deep",), 2),  # only where one folder holds the parts
        (("train/cat", "unlabeled"), ("cat",), 1),
        (("train/cat", "train/dog", "extra/cat", "test/cat"), ("cat", "dog"), 2),
        (("train/cat", "val/cat", "notes"), ("cat",), 1),  # beside two parts the third folder is none of the classes
        (("images/cat", "images/dog"), ("images",), 2),
    ],
)
def test_parts_in_a_folder_or_beside_others(
    tmp_path: Path, folders: tuple[str, ...], classes: tuple[str, ...], count: int
) -> None:
    images = load_images(class_folders(tmp_path, *folders))
    assert (images.classes, len(images)) == (classes, count)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ("cc3m-train-0000 cc3m-train-0001 cc3m-validation-0000", 2),
        ("imagenet_2012_train0 imagenet_2012_val0", 1),
        ("set-training-1 set-test-1 set-test-2", 1),
        ("cc3m-train-0000 cc3m-train-0001", 2),
        ("a-0000 b-0000", 2),
        ("test-0000 test-0001", 2),
    ],
)
def test_the_training_shards_of_names_with_a_common_beginning(tmp_path: Path, names: str, read: int) -> None:
    rows = Table.from_pydict({"image": [{"bytes": png(), "path": None}]})
    for name in names.split():
        parquet.write_table(rows, tmp_path / f"{name}.parquet")
    assert len(load_images(f"parquet:{tmp_path}")) == read


def test_of_a_folder_of_shards_the_training_part_is_read(tmp_path: Path) -> None:
    rows = Table.from_pydict({"image": [{"bytes": png(), "path": None}]})
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation-00000-of-00001"):
        parquet.write_table(rows, tmp_path / f"{name}.parquet")
    assert len(load_images(f"parquet:{tmp_path}")) == 2
    assert len(load_images(f"parquet:{tmp_path}/test-*.parquet")) == 1


def test_captions_of_the_training_part(tmp_path: Path) -> None:
    for part in ("train", "val"):
        class_folders(tmp_path, part)
        (tmp_path / part / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": part}))
    assert load_images(f"captions:{tmp_path}").classes == ("train",)


def test_labels_in_shares_are_as_even_as_can_be() -> None:
    counts = torch.tensor([5, 0, 3, 1])
    drawn = stratified(counts, 900)
    assert drawn.bincount(minlength=4).tolist() == [500, 0, 300, 100]
    assert len(stratified(counts, 0)) == 0
