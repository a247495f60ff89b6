"""Pairs of image and caption: the same from every format, mistakes in one line."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import Table, parquet

from progdist import UserError
from progdist.data.images import CaptionedImages, ImageTransform
from progdist.data.sources import load_images, open_source
from progdist.data.tables import Columns

CAPTIONS = ["a handwritten seven", 'one, "quoted",\nof two lines', "eine Süßigkeit", "a handwritten seven"]
NAMES = ["a.png", "b.jpg", "more/c.png", "more/d.webp"]


def images(root: Path) -> Path:
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), 60 * number, np.uint8)).save(root / name)
    return root


def as_json_lines(root: Path) -> None:
    rows = [{"file_name": name, "text": text} for name, text in zip(NAMES, CAPTIONS, strict=True)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def as_table(root: Path) -> None:
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "score", "text"])
        writer.writerows([name, 1, text] for name, text in zip(NAMES, CAPTIONS, strict=True))


def as_text_files(root: Path) -> None:
    for name, text in zip(NAMES, CAPTIONS, strict=True):
        (root / name).with_suffix(".txt").write_text(text + "\n")


def as_parquet(root: Path) -> None:
    files = [{"bytes": (root / name).read_bytes(), "path": None} for name in NAMES]
    parquet.write_table(
        Table.from_pydict({"number": [1, 2, 3, 4], "picture": files, "text": CAPTIONS}), root / "a.parquet"
    )


def as_parquet_of_bytes(root: Path) -> None:
    files = [(root / name).read_bytes() for name in NAMES]
    parquet.write_table(
        Table.from_pydict({"image": files, "label": [0, 0, 0, 0], "text": CAPTIONS}), root / "a.parquet"
    )


def as_tar(root: Path) -> None:
    with tarfile.open(root / "a.tar", "w") as file:
        for number, (name, text) in enumerate(zip(NAMES, CAPTIONS, strict=True)):
            image = io.BytesIO()
            Image.open(root / name).save(image, "png")
            for suffix, content in {
                "png": image.getvalue(),
                "txt": text.encode(),
                "json": json.dumps({"text": text}).encode(),
            }.items():
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


FORMATS: list[Callable[[Path], None]] = [as_json_lines, as_table, as_text_files]

TABLES: dict[str, tuple[Callable[[Path], None], str, Columns]] = {
    "parquet": (as_parquet, "parquet:{}", Columns("picture", "text")),
    "parquet of bytes": (as_parquet_of_bytes, "parquet:{}/*.parquet", Columns(None, "text")),
    "tar with text": (as_tar, "wds:{}", Columns(None, "txt")),
    "tar with json": (as_tar, "wds:{}/a.tar", Columns("png", "json.text")),
}


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_every_format_gives_the_same_pairs(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(images(tmp_path))
    found = load_images(f"captions:{tmp_path}")
    assert isinstance(found, CaptionedImages)
    pairs = [(round(float(image.mean()), 1), found.classes[label]) for image, label in found]
    assert pairs == [(round(60 * i / 127.5 - 1, 1), text) for i, text in enumerate(CAPTIONS)]
    assert len(found.classes) == 3  # a caption twice is one


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("table", TABLES)
def test_every_table_gives_the_same_pairs(table: str, tmp_path: Path) -> None:
    write, source, columns = TABLES[table]
    write(images(tmp_path))
    found = open_source(source.format(tmp_path), columns=columns)
    assert isinstance(found, CaptionedImages)
    pairs = [(round(float(image.mean()), 1), found.classes[label]) for image, label in found]
    assert pairs == [(round(60 * i / 127.5 - 1, 1), text) for i, text in enumerate(CAPTIONS)]
    assert len(found.classes) == 3
    assert found.reframed(ImageTransform(3, 1)).shape == (1, 3, 3)


@pytest.mark.usefixtures("_own_cache")
def test_tables_without_pairs_are_one_line(tmp_path: Path) -> None:
    as_parquet(images(tmp_path))
    for columns, message in (
        (Columns(None, "text"), "none of image"),
        (Columns("photo", "text"), "no photo: name the images' with --image-column"),
        (Columns("picture", "caption"), "no caption: name the captions' with --caption-column"),
        (Columns("picture", "number"), "4 of 4 rows have no text in number, the first is row 0"),
        (Columns("text", "text"), "text of row 0 cannot be read as an image"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(f"parquet:{tmp_path}", columns=columns)
    with pytest.raises(UserError, match="image_column and caption_column apply only to"):
        load_images("digits", image_column="image")


def test_a_part_of_the_pairs_keeps_its_captions(tmp_path: Path) -> None:
    as_json_lines(images(tmp_path))
    rest, held = load_images(f"captions:{tmp_path}").split(1, seed=0)
    assert isinstance(rest, CaptionedImages)
    assert rest.classes == held.classes
    assert sorted(label for part in (rest, held) for _, label in part) == [0, 0, 1, 2]


def broken(content: str, name: str = "metadata.jsonl") -> Callable[[Path], None]:
    def write(root: Path) -> None:
        as_json_lines(images(root))
        if name != "metadata.jsonl":
            (root / "metadata.jsonl").unlink()
        (root / name).write_text(content)

    return write


def without_an_image(root: Path) -> None:
    as_json_lines(images(root))
    (root / NAMES[2]).unlink()


def without_a_caption(root: Path) -> None:
    as_text_files(images(root))
    (root / "b.txt").unlink()


def with_an_empty_caption(root: Path) -> None:
    as_text_files(images(root))
    (root / "a.txt").write_text(" \n")


def with_both(root: Path) -> None:
    as_json_lines(images(root))
    as_table(root)


def not_text(root: Path) -> None:
    as_text_files(images(root))
    (root / "a.txt").write_bytes(b"\xff\xfe\xff")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (images, r"4 of 4 images in .* have no caption, the first is a.png"),
        (without_a_caption, r"1 of 4 images in .* have no caption, the first is b.jpg"),
        (with_an_empty_caption, r"1 of 4 images in .* have no caption, the first is a.png"),
        (without_an_image, r"names .*c.png, which is not an image there \(1 of 4 are not\)"),
        (with_both, "has both metadata.jsonl and metadata.csv"),
        (not_text, "a.txt cannot be read as text"),
        (
            broken('{"file_name": "a.png", "caption": "x"}'),
            "line 1 has file_name, caption, expected file_name and text",
        ),
        (broken('{"file_name": "a.png", "text": 3}'), "line 1 has file_name, text, expected .* as text"),
        (broken("file_name,caption\na.png,x", "metadata.csv"), "line 2 has file_name, caption, expected"),
        (broken("{"), "line 1 is not JSON"),
        (broken("[1]"), "line 1 holds a list"),
        (broken('{"file_name": "a.png", "text": "x"}\n' * 2), "line 2 names a.png again"),
        (broken('{"file_name": "../a.png", "text": "x"}'), "which is not an image there"),
        (lambda root: None, "holds no images"),
    ],
)
def test_mistakes_are_one_line(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    damage(tmp_path)
    with pytest.raises(UserError, match=said) as refused:
        load_images(f"captions:{tmp_path}")
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_none() -> None:
    with pytest.raises(UserError, match="is not a folder"):
        load_images("captions:nowhere")


def test_captions_as_spreadsheets_and_browsers_write_them(tmp_path: Path) -> None:
    """A byte order mark, and the separators of Unicode within a caption."""
    captions = [f"one{separator}two" for separator in ("\u2028", "\u0085", "\x0c", " ")]
    rows = [{"file_name": name, "text": text} for name, text in zip(NAMES, captions, strict=True)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    root = images(tmp_path)
    for name, content in (
        ("metadata.jsonl", lines),
        ("metadata.csv", "file_name,text\r\n" + "".join(f'{row["file_name"]},"{row["text"]}"\r\n' for row in rows)),
    ):
        (root / name).write_bytes(content.encode("utf-8-sig"))
        assert load_images(f"captions:{root}").classes == tuple(captions)
        (root / name).unlink()
