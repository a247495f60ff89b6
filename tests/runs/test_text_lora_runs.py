"""Low-rank students of text-to-image pipelines, and the LoRA file that a stock pipeline loads."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from progdist.distillation import stage_training
from progdist.recipes.files import override
from progdist.recipes.from_teacher import Request, recipe_for_teacher
from progdist.runs.run import open_run
from progdist.teachers.open import open_teacher
from progdist.teachers.own import LORA_FILE, load
from progdist.training.lora import add_lora, load_adapter, merge_lora
from progdist.training.state import State
from support.commands import SilentCallback
from support.text import WRITERS, write_sd
from support.text_runs import distilled
from support.training import flat_weights, storages

SLOW = pytest.mark.slow


@SLOW
def test_low_rank_students_take_a_guidance_scale(pairs: Path) -> None:
    ranks = ("--set", "conversion.lora_rank=2", "--set", "distill.lora_rank=2")
    out = distilled(write_sd(pairs.parent / "teacher"), pairs, "--guidance", "1:8", *ranks)
    assert load(out / "student-0004").denoiser.network.get_parameter("time_embedding.cond_proj.weight").any()


@SLOW
@pytest.mark.parametrize("kind", WRITERS)
def test_a_lora_file_for_the_stock_pipeline(kind: str, pairs: Path) -> None:
    """One set of adapters through all stages: a student that is taught nothing is its teacher's."""
    place = WRITERS[kind](pairs.parent / "teacher")
    still = ("--set", "distill.stages.4.learning_rate=1e-30", "--set", "distill.chain=[8, 4]")
    out = distilled(place, pairs, "--guidance", "3", "--lora", 2, *still)
    base, teacher, student = open_teacher(str(place)).model, load(out / "converted"), load(out / "student-0004")
    for model in (teacher, student):
        assert model.denoiser.parameterization == base.denoiser.parameterization  # eps
        assert model.denoiser.schedule == base.denoiser.schedule
        assert model.lora is not None
        assert (model.lora.base, model.lora.rank) == (str(place), 2)
        network = add_lora(base.denoiser.network, 2, seed=0)
        load_adapter(network, model.lora.weights)
        for ours, saved in zip(merge_lora(network).parameters(), model.denoiser.network.parameters(), strict=True):
            torch.testing.assert_close(ours, saved, rtol=0, atol=1e-6)
    assert teacher.lora is not None
    assert student.lora is not None
    assert any(rows.any() for name, rows in teacher.lora.weights.items() if "lora_B" in name)  # it has been taught
    assert all(torch.equal(rows, student.lora.weights[name]) for name, rows in teacher.lora.weights.items())
    assert not torch.equal(flat_weights(base.denoiser.network), flat_weights(student.denoiser.network))
    pipeline = getattr(diffusers, kind).from_pretrained(place)
    pipeline.load_lora_weights(out / "student-0004")


@SLOW
def test_teacher_and_student_of_a_later_stage_are_one_network_with_two_adapters(pairs: Path) -> None:
    base = str(write_sd(pairs.parent / "teacher"))
    request = Request(base, f"captions:{pairs}", "a", steps=2, start=8, updates=1, batch=4, guidance=3.0, lora=2)
    short = ["teacher.trust=true", "conversion.updates=1", "distill.learning_rate=0.01", "distill.precision=float32"]
    run = open_run(
        override(recipe_for_teacher(open_teacher(base), request), short), pairs.parent / "a", SilentCallback()
    )
    plan, own, trainer = run.context.plan, run.context.teacher, run.trainer()
    assert own is not None
    first = trainer.fit(stage_training(plan, 1, run.train_teacher(trainer), own))
    assert first.lora is not None
    training = stage_training(plan, 2, first, own)
    assert training.teacher is not None
    student = add_lora(training.model.denoiser.network, 2, seed=0)
    adapter = sum(rows.nbytes for rows in first.lora.weights.values())
    held = storages(own.model.denoiser.network, training.teacher.network, student)
    assert held == storages(own.model.denoiser.network) + 2 * adapter
    z, t = torch.randn(2, *first.shape), torch.tensor([1.0, 0.5], dtype=torch.float64)
    condition = first.conditions(None, ("a cat",))({"labels": torch.zeros(2, dtype=torch.int64)})
    with torch.no_grad():
        torch.testing.assert_close(training.teacher(z, t, **condition), first.denoiser(z, t, **condition))


@SLOW
def test_a_lora_run_goes_on_where_it_stopped(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; without guidance there is no stage 0."""
    base = str(write_sd(pairs.parent / "teacher"))
    proposed = recipe_for_teacher(
        open_teacher(base), Request(base, f"captions:{pairs}", "a", steps=4, start=8, updates=2, batch=4, lora=2)
    )
    changes = ["teacher.trust=true", "distill.checkpoint_every=1", "distill.precision=float32"]
    recipe, files, step = override(proposed, changes), [], State.step
    for name, broken in (("whole", ()), ("broken", (3,))):
        updates = itertools.count(1)

        def stops(*arguments: Any, at: tuple[int, ...] = broken, updates: Any = updates) -> None:  # noqa: ANN401
            if next(updates) in at:
                raise KeyboardInterrupt
            step(*arguments)

        monkeypatch.setattr(State, "step", stops)
        for _ in range(1 + len(broken)):
            run = open_run(recipe, pairs.parent / name, SilentCallback())
            with contextlib.suppress(KeyboardInterrupt):
                trainer = run.trainer()
                teacher = run.train_teacher(trainer)
                assert (teacher.training["updates"], teacher.lora) == (0, None)
                trainer.fit(stage_training(run.context.plan, 1, teacher, run.context.teacher))
        files.append((pairs.parent / name / "student-0004" / LORA_FILE).read_bytes())
    assert files[0] == files[1]
    assert load(pairs.parent / "broken" / "student-0004").denoiser.parameterization.name == "eps"
