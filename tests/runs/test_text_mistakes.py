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
        (("--guidance", "8:1"), "guidance is 8 to 1, expected a positive scale, or a range with low < high"),
        (("--guidance", "3:3"), "is not a range"),
        (("--guidance", "1:2:3"), "--guidance 1:2:3: expected a number"),
        (("--guidance", "much"), "--guidance much: expected a number"),
        (("--negative", "a smudge"), "negative requires conversion.guidance"),
        (
            ("--guidance", "1:8", "--set", "conversion.null_class=1"),
            "conversion.null_class applies only to class-conditional",
        ),
        (("--data", "digits"), "the model requires prompts, and digits has no captions"),
        (("--guidance", "1:8", "--lora", "2"), "lora requires a single guidance scale"),
        (("--lora", "2", "--set", "distill.lora_rank=2"), "lora is the rank of every stage: remove distill.lora_rank"),
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
        (("--guidance", "1:8"), "guidance requires a teacher with classes or prompts, and it has neither"),
        (("--guidance", "2", "--negative", "a smudge"), "conversion.negative applies only to text-to-image teachers"),
        (
            ("--lora", "2"),
            "lora requires a pipeline with load_lora_weights, got no text-to-image model",
        ),
        ((), "holds captions, but the teacher takes none"),
    ],
)
def test_captions_are_refused_where_they_have_no_effect(
    words: tuple[str, ...], said: str, stock: Callable[..., Path], pairs: Path
) -> None:
    data = f"captions:{pairs}" if not words else "digits"
    teacher = stock(classes=11 if "--negative" in words else None)
    result = call("distill", teacher, "--data", data, *SMALL, *words, "--out", pairs.parent / "run")
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
