"""Files appear whole, from any number of writers, and nothing is left where one fails."""

import os
from pathlib import Path

import pytest

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, own_files
from progdist.training.checkpoint import Checkpoint, Checkpoints


def test_a_second_writer_in_the_midst_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is renamed is what each wrote: the first one's file is not taken away under it."""
    path, flush = tmp_path / "report.html", os.fsync

    def second_writer(descriptor: int) -> None:
        flush(descriptor)
        monkeypatch.setattr(os, "fsync", flush)
        atomic_write(path, b"second")
        assert path.read_bytes() == b"second"

    monkeypatch.setattr(os, "fsync", second_writer)
    atomic_write(path, b"first")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def full(descriptor: int) -> None:
        raise error

    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(type(error)):
        atomic_write(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_what_a_killed_process_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    left = tmp_path / ".00000002.safetensors.123-89abcdef.partial"
    left.write_bytes(b"half")
    Checkpoints(tmp_path).save(Checkpoint(2, {}, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002.json", "00000002.safetensors"]


@pytest.mark.parametrize(
    ("folder", "target", "allowed"),
    [
        ("teacher", "teacher/other.json", True),
        ("teacher", "other.json", False),
        ("snapshots/teacher", "secret.txt", False),  # that is no cache
        ("snapshots/teacher", "blobs/0", False),
        ("models--a--b/snapshots/0a", "models--a--b/blobs/0", True),
        ("models--a--b/snapshots/0a", "models--a--b/secret.txt", False),
        ("models--a--b/snapshots/0a", "models--a--b/snapshots/0b/a", False),
        ("models--a--b/snapshots/0a", "models--a--c/blobs/0", False),
        ("models--a--b/snapshots/0a", "models--a--b/blobs-of-others/0", False),
    ],
)
@pytest.mark.parametrize("whole", [True, False])  # a link to the part itself, or to a file in it
def test_links_lead_out_of_a_folder_only_within_the_hubs_cache(
    tmp_path: Path, folder: str, target: str, allowed: bool, whole: bool
) -> None:
    root, file = tmp_path / folder, tmp_path / target
    root.mkdir(parents=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    link = root / "tokenizer" if whole else root / "tokenizer" / "vocab.json"
    if whole:
        file.mkdir()
        (file / "vocab.json").write_text("{}")
    else:
        link.parent.mkdir()
        file.write_text("{}")
    link.symlink_to(file)
    if allowed:
        assert (root / "tokenizer" / "vocab.json") in own_files(root, "tokenizer")
    else:
        with pytest.raises(UserError, match=r"is a link to .*, outside "):
            own_files(root, "tokenizer")
