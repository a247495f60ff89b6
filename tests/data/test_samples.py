"""A teacher's own samples as a source of data: its name, prompts in a file, and examples of any rank."""

from pathlib import Path

import pytest
import torch

from progdist import UserError
from progdist.data.samples import SampledImages, Samples, is_teacher, read_prompts, sample_count
from progdist.data.shards import TensorShards
from progdist.data.sources import load_images
from progdist.training.batches import Batches


@pytest.mark.parametrize(("source", "count"), [("teacher", None), ("teacher:1", 1), ("teacher:5000", 5000)])
def test_a_count_of_samples(source: str, count: int | None) -> None:
    assert is_teacher(source)
    assert sample_count(source) == count


@pytest.mark.parametrize("source", ["teacher:", "teacher:0", "teacher:5,000", "teacher:-3", "teacher:1e3", "teacher:²"])
def test_what_is_no_count_is_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"expected teacher:COUNT, e\.g\. teacher:5000"):
        sample_count(source)


def test_no_other_command_reads_a_teacher_as_images() -> None:
    assert not is_teacher("folder:teacher")
    with pytest.raises(UserError, match="applies only to `progdist distill` and recipes"):
        load_images("teacher:100")


def test_prompts_are_lines(tmp_path: Path) -> None:
    """A mark of the byte order, blanks at the ends and blank lines are passed over; other separators end no line."""
    (tmp_path / "p.txt").write_bytes("\ufeff a cat \r\n\r\nein Kätzchen\n\t\na\u2028cat\n".encode())
    prompts, notes = read_prompts(str(tmp_path / "p.txt"))
    assert prompts == ("a cat", "ein Kätzchen", "a\u2028cat")
    assert notes == (f"{tmp_path}/p.txt: skipped 2 blank lines",)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "is empty"), (b"\n \n", "is empty"), (b"caf\xe9", "it is not UTF-8")],
)
def test_prompts_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(str(tmp_path / "p.txt"))
    assert "one prompt per line" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4), (2, 3, 4, 4)])
def test_samples_are_examples_of_any_rank(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = torch.randn(10, *shape)
    shards = TensorShards(tmp_path, 10, 4)
    for number, span in enumerate(shards.spans()):
        shards.write(number, [rows[span.start : span.stop]])
    samples = Samples(shards.__getitem__, shape, torch.arange(10))
    most, held_out = samples.split(3, seed=0)
    assert (len(most), len(held_out)) == (7, 3)
    assert sorted(label for part in (most, held_out) for _, label in map(part.__getitem__, range(len(part)))) == [
        *range(10)
    ]
    batch = next(Batches(most, 5, 0, 1)(0, 1, slice(5)))
    assert batch["x"].shape == batch["eps"].shape == (5, *shape)
    torch.testing.assert_close(batch["x"], rows[batch["labels"]])
    images = SampledImages(shards, lambda x: 2 * x, lambda: "these")
    torch.testing.assert_close(images.rows([7, 1]), 2 * rows[[7, 1]])
    torch.testing.assert_close(images(3), 2 * rows[3])
