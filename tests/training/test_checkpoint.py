"""Checkpoints are kept whole, and damaged ones are skipped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from progdist._utils.errors import UserError
from progdist._utils.files import FORMAT_VERSION
from progdist.training.checkpoint import Checkpoint, Checkpoints


def test_checkpoints_keep_the_last_and_are_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for update in (3, 7, 12):
        checkpoints.save(Checkpoint(update, {"a": torch.full((2,), float(update))}, {"seconds": 1.5}))
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.update, latest.tensors["a"].tolist(), latest.numbers["seconds"]) == (12, [12.0, 12.0], 1.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000007.json", "00000007.safetensors", "00000012.json", "00000012.safetensors",
    ]  # fmt: skip


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [damage, lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])],
    ids=["a bit", "gone", "short"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_damaged_checkpoint_is_skipped_with_a_notice(
    tmp_path: Path, harm: Callable[[Path], None], suffix: str
) -> None:
    checkpoints, notices = Checkpoints(tmp_path), []
    for update in (5, 10):
        checkpoints.save(Checkpoint(update, {"w": torch.full((50,), float(update))}, {"seconds": 1.5}))
    harm(tmp_path / f"00000010{suffix}")
    latest = checkpoints.latest(notices.append)
    assert latest is not None
    if latest.update == 10:  # the JSON's flipped bit made another whole file of the same numbers
        assert suffix == ".json"
    else:
        assert torch.equal(latest.tensors["w"], torch.full((50,), 5.0))
        assert latest.numbers == {"seconds": 1.5}
        gone = suffix == ".json" and not (tmp_path / "00000010.json").exists()
        assert gone or (len(notices) == 1 and "00000010" in notices[0])


def test_a_checkpoint_of_a_later_format_is_told_as_such(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(3, {"a": torch.ones(2)}, {}))
    path = tmp_path / "00000003.json"
    metadata = json.loads(path.read_text())
    assert metadata.pop("format_version") == FORMAT_VERSION
    path.write_text(json.dumps({**metadata, "format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        checkpoints.at(3)


def test_after_unreadable_checkpoints_the_new_ones_stay(tmp_path: Path) -> None:
    checkpoints, notices = Checkpoints(tmp_path, keep=2), []
    for update in (4000, 5000):
        checkpoints.save(Checkpoint(update, {"w": torch.ones(50)}, {}))
        damage(tmp_path / f"{update:08d}.safetensors")
    assert checkpoints.latest(notices.append) is None
    assert len(notices) == 2
    for update in (1000, 2000, 3000):
        checkpoints.save(Checkpoint(update, {"w": torch.full((50,), float(update))}, {}))
        latest = checkpoints.latest()
        assert latest is not None
        assert latest.update == update
        assert latest.tensors["w"].tolist() == [float(update)] * 50
    kept = sorted(int(path.stem) for path in tmp_path.glob("*.json"))
    assert kept == [2000, 3000, 4000, 5000]
    for update in (5000, 6000):  # where training passes them they go as all others
        checkpoints.save(Checkpoint(update, {"w": torch.ones(50)}, {}))
    assert sorted(int(path.stem) for path in tmp_path.glob("*.json")) == [5000, 6000]


def test_where_the_latest_are_of_a_later_format_nothing_starts_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for update in (3, 6):
        checkpoints.save(Checkpoint(update, {"a": torch.ones(2)}, {}))
    for path in tmp_path.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(UserError, match=r"00000006.json has format version 2, .*: upgrade progdist"):
        checkpoints.latest()
