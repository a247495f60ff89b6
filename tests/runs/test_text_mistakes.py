"""What is refused of captions, guidance and LoRA before a run begins, and what `doctor` says of captions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import call
from support.text import write_sd
from support.text_runs import SMALL

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guidance", "8:1"), "is no range"),
        (("--guidance", "1:2:3"), "--guidance 1:2:3 is no scale"),
        (("--guidance", "much"), "--guidance much is no scale"),
        (("--negative", "a smudge"), "negative is what guidance leads away from"),
        (("--guidance", "1:8", "--set", "conversion.null_class=1"), "conversion.null_class is of classes"),
        (("--data", "digits"), "the teacher makes images of captions, and digits has none"),
        (("--guidance", "1:8", "--lora", "2"), "a range of guidance is an input that the teacher's own pipeline lacks"),
        (("--lora", "2", "--set", "distill.lora_rank=2"), "lora is the rank of every stage: leave distill.lora_rank"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], said: str, pairs: Path) -> None:
    place = write_sd(pairs.parent / "teacher")
    result = call("distill", place, "--data", f"captions:{pairs}", *SMALL, *words, "--out", pairs.parent / "run")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guidance", "1:8"), "the teacher has no classes, so there is nothing to guide"),
        (("--guidance", "2", "--negative", "a smudge"), "conversion.negative is a prompt"),
        (("--lora", "2"), "lora makes a file for the pipeline of a text-to-image teacher"),
        ((), "is of captions, and the teacher takes none"),
    ],
)
def test_captions_are_refused_where_they_have_no_effect(
    words: tuple[str, ...], said: str, stock: Callable[..., Path], pairs: Path
) -> None:
    data = f"captions:{pairs}" if not words else "digits"
    result = call("distill", stock(), "--data", data, *SMALL, *words, "--out", pairs.parent / "run")
    assert result.exit_code == 2
    assert said in result.stderr


@SLOW
def test_the_doctor_counts_captions_and_caches(pairs: Path) -> None:
    place = write_sd(pairs.parent / "teacher")
    result = call("doctor", place, "--data", f"captions:{pairs}")
    assert "12 pairs of image and caption, 3 distinct captions" in result.output
    assert "1.2 kB of embeddings" in result.output  # 3 captions, 12 tokens, 16 channels, 2 bytes
    assert "3.1 kB of latents" in result.output  # 12 images, 4 x 4 x 4 numbers of 4 bytes
    (pairs / "03.txt").unlink()
    result = call("doctor", place, "--data", f"captions:{pairs}")
    assert result.exit_code == 2
    assert "1 of 12 images" in result.stderr
