"""SDXL is told of each image's size and crop in training, and of neither in sampling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from progdist.diffusion.denoiser import Denoiser
from progdist.distillation import stage_training
from progdist.models.prompts import Prompts
from progdist.recipes.files import override
from progdist.recipes.from_teacher import Request, recipe_for_teacher
from progdist.runs.run import open_run
from progdist.teachers.open import open_teacher
from support.commands import SilentCallback
from support.text import write_sdxl

SIZES = [(20, 8), (12, 12), (8, 16), (24, 16), (8, 8), (9, 30)]
"""(width, height) of the images."""

CAPTIONS = ["a handwritten seven", "the digit three", "an eight", "a handwritten zero", "drawn", "seven, three"]
"""Of the words that the tokenizer knows, so that their embeddings differ."""


@pytest.mark.slow
def test_teacher_and_students_are_told_the_size_of_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    place, draw = tmp_path / "pairs", np.random.default_rng(0)
    place.mkdir()
    for number, (width, height) in enumerate(SIZES):
        Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(CAPTIONS[number])
    base = str(write_sdxl(tmp_path / "base"))
    proposed = recipe_for_teacher(
        open_teacher(base),
        Request(base, f"captions:{place}", "sizes", steps=4, start=8, updates=2, batch=6, guidance=3.0),
    )
    small = ["evaluate.samples=4", "evaluate.resamples=2", "teacher.trust=true", "data.crops=2"]
    held_out = ["distill.stop={every: 1, held_out: 6}"]
    float32 = [f"{section}.precision=float32" for section in ("conversion", "distill", "evaluate")]
    run = open_run(override(proposed, [*small, *held_out, *float32]), tmp_path / "run", SilentCallback())
    assert len(run.context.images) == 12
    run.prepare()
    trainer = run.trainer()
    seen: list[dict[str, Any]] = []
    forward = Denoiser.forward

    def spy(self: Denoiser, z: torch.Tensor, t: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
        seen.append(condition)
        return forward(self, z, t, **condition)

    monkeypatch.setattr(Denoiser, "forward", spy)
    teacher = run.train_teacher(trainer)
    trainer.fit(stage_training(run.context.plan, 1, teacher, run.context.teacher))
    assert isinstance(teacher.conditioning, Prompts)
    check_sizes(teacher.conditioning, seen)
    seen.clear()
    run.evaluator.samples(teacher, 2)
    assert all((condition["time_ids"] == torch.tensor([8.0, 8, 0, 0, 8, 8])).all() for condition in seen)


def check_sizes(prompts: Prompts, seen: list[dict[str, Any]]) -> None:
    """Each caption comes with the size of its image, and with a crop of it."""
    captions = prompts.encoder()(CAPTIONS)["text_embeds"].half().float()
    tops = set[tuple[int, int, int]]()
    rows = [pair for condition in seen for pair in zip(condition["text_embeds"], condition["time_ids"], strict=True)]
    for embedding, told in rows:
        number = next((n for n, each in enumerate(captions) if torch.equal(embedding, each)), None)
        if number is None:  # the empty prompt, of which there is an image, too
            continue
        height, width, top, left, *new = map(int, told)
        assert ((width, height), new) == (SIZES[number], [8, 8])
        room = 8 / min(width, height) * (max(width, height) - min(width, height))
        assert (0 <= left <= room + 0.5 and top == 0) if width >= height else (0 <= top <= room + 0.5 and left == 0)
        tops.add((number, top, left))
    assert {number for number, _, _ in tops} == set(range(6))
    assert len(tops) > 8  # two crops of each image that has them
