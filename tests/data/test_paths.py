"""Paths are what they say: brackets, stars, spaces and braces are tried literally first, and `~` is the home folder."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import Table, parquet

from progdist.data.sources import load_images

NAMES = ["faces[v1]", "a*b?", "two words", "a\nb", "{1..2}", "~x", "a%20b#c"]


def everything(root: Path) -> dict[str, str]:
    """A source of each kind in a folder, with or without captions."""
    (root / "flat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(root / "flat" / "a.png")
    (root / "flat" / "a.txt").write_text("a cat")
    content = (root / "flat" / "a.png").read_bytes()
    np.savez(root / "a.npz", images=np.zeros((1, 8, 8), np.uint8))
    (root / "hub").mkdir()
    rows = Table.from_pydict({"image": [{"bytes": content, "path": None}], "text": ["a cat"]})
    for name in ("a.parquet", "hub/train.parquet"):
        parquet.write_table(rows, root / name)
    with tarfile.open(root / "a.tar", "w") as file:
        for name in ("a.png", "a.txt"):
            file.add(root / "flat" / name, name)
    return {
        "folder": "flat", "captions": "flat", "npz": "a.npz", "hub": "hub", "parquet": "a.parquet", "wds": "a.tar"
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_what_it_says(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    for scheme, place in everything(folder).items():
        assert len(load_images(f"{scheme}:{folder}/{place}")) == 1, scheme
        if scheme in ("hub", "parquet", "wds"):
            column = "txt" if scheme == "wds" else "text"
            images = load_images(f"{scheme}:{folder}/{place}", caption_column=column)
            assert images.classes == ("a cat",), scheme


def test_home_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for scheme, place in everything(tmp_path / "data").items():
        assert len(load_images(f"{scheme}:~/data/{place}")) == 1, scheme
    assert len(load_images("parquet:~/data/*.parquet")) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    everything(tmp_path / "~" / "other")
    assert len(load_images("folder:~/other/flat")) == 1  # there is such a folder, and none at home
