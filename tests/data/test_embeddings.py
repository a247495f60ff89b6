"""The embeddings of captions: those of the stock pipeline, encoded once, kept in shards."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from progdist import UserError
from progdist.data import embeddings
from progdist.data.embeddings import encode_captions
from progdist.models.prompts import Prompts
from progdist.teachers.open import open_teacher
from support.text import PROMPTS, WRITERS


@pytest.mark.parametrize("kind", WRITERS)
def test_cached_embeddings_are_the_stock_pipelines(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 1000)  # two captions of the smaller kind
    conditioning = open_teacher(str(WRITERS[kind](tmp_path / "pipeline"))).model.conditioning
    assert isinstance(conditioning, Prompts)
    encoder, notes = conditioning.encoder(), list[str]()
    captions = [*PROMPTS, "an eight, handwritten"]
    cached = encode_captions(captions, lambda: encoder, tmp_path / "captions", notes.append)
    assert notes == ["5 distinct captions are encoded once"]
    assert len(list((tmp_path / "captions").glob("*.safetensors"))) > 1
    found = encoder.pipeline.encode_prompt(
        captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    theirs = found[::2]
    numbers = torch.tensor([4, 0, 3, 3])
    with torch.autocast("cpu", torch.bfloat16):  # as in training by bf16
        rows = cached(numbers)
    for ours, whole in zip(rows.values(), theirs, strict=True):
        assert ours.dtype == torch.float16
        assert torch.equal(ours, whole.half()[numbers])


def test_captions_of_different_lengths_are_filled_up_across_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that fills each batch to its own longest, with a mask; whole numbers are kept as they are."""
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 1)  # one caption to a shard

    def encode(captions: Sequence[str]) -> dict[str, Tensor]:
        longest = max(1, *map(len, captions))
        rows = torch.tensor([[0.5] * len(each) + [0.0] * (longest - len(each)) for each in captions])
        return {"words": rows, "mask": (rows > 0).long(), "number": torch.tensor([70_001] * len(captions))}

    cached = encode_captions(["abc", "a", "abcdef"], lambda: encode, tmp_path / "captions", lambda text: None)
    found = cached(torch.tensor([1, 2, 0]))
    assert found["mask"].sum(1).tolist() == [1, 6, 3]
    assert found["words"].shape == (3, 6)
    assert found["number"].tolist() == [70_001] * 3


class Counting:
    """An encoder that tells what it was asked."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.asked: list[str] = []
        self.fails_at = fails_at

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.fails_at in prompts:
            raise KeyboardInterrupt
        self.asked += filter(None, prompts)
        return {"encoder_hidden_states": torch.tensor([[float(len(prompt))] for prompt in prompts])}


def test_encoding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 4)  # two captions
    captions = ["a", "bb", "ccc", "dddd", "eeeee"]
    with pytest.raises(KeyboardInterrupt):
        encode_captions(captions, lambda: Counting(fails_at="dddd"), tmp_path / "captions", print)
    second = Counting()
    cached = encode_captions(captions, lambda: second, tmp_path / "captions", print)
    assert second.asked == ["ccc", "dddd", "eeeee"]
    assert cached(torch.arange(5))["encoder_hidden_states"].flatten().tolist() == [1, 2, 3, 4, 5]
    third = Counting()
    encode_captions(captions, lambda: third, tmp_path / "captions", print)
    assert third.asked == []


def test_embeddings_of_other_captions_or_encoders_are_made_again(tmp_path: Path) -> None:
    folder, notes = tmp_path / "captions", list[str]()

    def lengths(captions: Sequence[str], made_by: str = "") -> tuple[list[float], list[str], int]:
        counting, told = Counting(), len(notes)
        made = encode_captions(captions, lambda: counting, folder, notes.append, made_by)
        rows = made(torch.arange(len(captions)))["encoder_hidden_states"]
        return rows.flatten().tolist(), [note for note in notes[told:] if "again" in note], len(counting.asked)

    assert lengths(["a", "b"]) == ([1, 1], [], 2)
    assert lengths(["a", "b"]) == ([1, 1], [], 0)
    found, told, asked = lengths(["a", "cc"])
    assert (found, len(told), asked) == ([1, 2], 1, 2)
    found, told, asked = lengths(["a", "cc"], "another encoder")
    assert (found, len(told), asked) == ([1, 2], 1, 2)
    (folder / "00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        lengths(["a", "cc"], "another encoder")
    with pytest.raises(UserError, match="overflows half precision"):
        encode_captions(["x" * 70_000], Counting, tmp_path / "long", print)
