"""Every field of a recipe changes what is built."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from pydantic import BaseModel

from progdist import UserError
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.training import Conversion, StageTraining
from progdist.runs.run import open_run
from progdist.runs.teacher_samples import TeacherSamples
from progdist.training.config import OPTIONS
from support.commands import TINY, SilentCallback
from support.recipe_effects import (
    Observe,
    batches_of,
    evaluated_scale_of,
    evaluations_of,
    feature_spaces_of,
    held_out_losses_of,
    images_of,
    losses_of,
    message_of,
    mistake_of,
    network_of,
    qualities_of,
    sampling_of,
    schedule_of,
    stages_of,
    teacher_config_of,
    tracking_of,
    untrained_of,
    weights_of,
)
from support.stock import SaveStock
from support.text import write_sd

CHANGES: dict[str, tuple[Any, Observe]] = {
    "name": ("other", lambda recipe: recipe.name),
    "about": ("words", lambda recipe: recipe.about),
    "seed": (7, weights_of),
    "parameterization": ("x_eps", network_of),
    "data.source": ("npz:{npz}", images_of),
    "data.classes": (7, message_of),
    "data.size": (4, images_of),
    "data.channels": (3, images_of),
    "data.resample": ("bilinear", images_of),
    "data.background": ("black", images_of),
    "data.crops": (2, images_of),
    "tracking": ("tensorboard", tracking_of),
    "data.image_column": ("picture", lambda recipe: recipe.data.columns()),
    "data.caption_column": ("text", lambda recipe: recipe.data.columns()),
    "data.flip": (True, batches_of),
    "data.workers": (2, batches_of),
    "noise.kind": ("linear", schedule_of),
    "noise.log_snr_max": (10, schedule_of),
    "noise.log_snr_min": (-10, schedule_of),
    "noise.num_train_timesteps": (512, schedule_of),
    "network.width": (16, network_of),
    "network.multipliers": ([1, 1], network_of),
    "network.blocks": (2, network_of),
    "network.attention": ([4], network_of),
    "network.head_size": (2, network_of),
    "network.embedding": (64, network_of),
    "network.groups": (8, network_of),
    "network.dropout": (0.3, network_of),
    "network.class_conditional": (True, network_of),
    "teacher.weighting": ("snr_plus_one", losses_of),
    "distill.start": (16, stages_of),
    "distill.end": (2, stages_of),
    "distill.substeps": (8, stages_of),
    "distill.chain": ([32, 8, 1], stages_of),
    "distill.weighting": ("constant", losses_of),
    "distill.method": ("tract", losses_of),
    "distill.options": ({"weight": 0.5}, lambda recipe: recipe.plan().method_of(1).options),
    "distill.stop.every": (2, held_out_losses_of),
    "distill.stop.window": (2, held_out_losses_of),
    "distill.stop.fraction": (0.9, held_out_losses_of),
    "distill.stop.held_out": (24, held_out_losses_of),
    "distill.stages": ({1: {"updates": 9}}, stages_of),
    "evaluate.samples": (97, sampling_of),
    "evaluate.batch": (50, sampling_of),
    "evaluate.precision": ("bf16", sampling_of),
    "evaluate.clip": (True, sampling_of),
    "evaluate.features": (["pixels"], feature_spaces_of),
    "evaluate.metrics": (["precision_recall"], qualities_of),
    "evaluate.reference": ({"pixels": "{statistics}"}, qualities_of),
    "evaluate.weights": ({"inception": "{missing}"}, mistake_of),
    "evaluate.resamples": (11, evaluations_of),
    "evaluate.teacher_every": (2, evaluations_of),
    "evaluate.solver": ("null", evaluations_of),
    "evaluate.most_steps": (2, evaluations_of),
    "evaluate.cuda_graphs": (True, sampling_of),
    "evaluate.guidance": (2.0, evaluated_scale_of),
}


TRAINING = {
    "updates": 99, "batch": 16, "learning_rate": 0.5, "warmup": 9, "weight_decay": 0.1,
    "max_grad_norm": 0.5, "ema": 0.5, "gradient_accumulation_steps": 2, "precision": "bf16", "checkpoint_every": 77,
    "gradient_checkpointing": True, "compile": True, "cuda_graphs": True, "lora_rank": 3, "max_skipped_updates": 2,
    "optimizer": "adamw8bit", "adam_beta1": 0.5, "adam_beta2": 0.95,
}  # fmt: skip


for _section, _observe in (("teacher", teacher_config_of), ("distill", stages_of)):
    CHANGES |= {f"{_section}.{key}": (value, _observe) for key, value in TRAINING.items()}


del CHANGES["teacher.lora_rank"]  # refused: a teacher is trained whole


CHANGES |= {
    "teacher.lr_scheduler": ("linear", teacher_config_of),
    "distill.lr_scheduler": ("constant", stages_of),
}


def is_part(kind: Any) -> bool:  # noqa: ANN401
    """Whether a type is a section of a recipe."""
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def leaves(part: Any, prefix: str = "") -> list[str]:  # noqa: ANN401
    names: list[str] = []
    hints = get_type_hints(part)
    for name in part.model_fields if issubclass(part, BaseModel) else (field.name for field in fields(part)):
        part_of_it = next((kind for kind in (hints[name], *get_args(hints[name])) if is_part(kind)), None)
        if part_of_it is not None and name != "stages":
            names += leaves(part_of_it, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def test_the_table_is_complete() -> None:
    """Except for stage 0, lora, `initial`, a given teacher and its samples, which have their own tests."""
    keys = ("model", "offset", "trust", "call", "loras", "config")
    of_a_teacher = tuple(f"teacher.{key}" for key in keys)
    elsewhere = (*of_a_teacher, "data.prompts", "data.steps", "conversion.", "lora", "base_bits", "distill.initial")
    taken = {
        name
        for name in leaves(Recipe)
        if name.startswith(elsewhere) or name == "teacher.lora_rank"  # refused: a teacher is trained whole
    }
    assert sorted(CHANGES) == sorted(set(leaves(Recipe)) - taken)


@pytest.mark.parametrize(
    "field", [pytest.param(field, marks=pytest.mark.slow) if ".stop." in field else field for field in CHANGES]
)
def test_every_field_changes_what_is_built(tiny: Callable[..., Recipe], field: str) -> None:
    value, observe = CHANGES[field]
    base: dict[str, object] = {"data.resample": {"data.size": 4}}.get(field, {})  # pyright: ignore
    base |= {"data.background": {"data.source": "folder:{transparent}"}}.get(field, {})
    base |= {"data.crops": {"data.size": 8, "data.source": "npz:{wide}"}}.get(field, {})
    base |= {"network.head_size": {"network.attention": [4]}}.get(field, {})
    base |= {"distill.options": {"distill.method": "adversarial"}}.get(field, {})
    if ".stop." in field:
        base |= {"distill.stop": {"every": 1, "window": 1, "fraction": 0.0001, "held_out": 16}, "distill.updates": 5}
    assert observe(tiny(**base)) == observe(tiny(**base))
    assert observe(tiny(**base)) != observe(tiny(**base, **{field: value}))


def test_crops_need_a_size(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"crops requires data\.size"):
        tiny(**{"data.crops": 2})


def test_a_stage_overrides_only_what_it_says(tiny: Callable[..., Recipe]) -> None:
    for field in StageTraining.model_fields.keys() - {"options"}:
        value = {**TRAINING, "lr_scheduler": "constant"}[field]
        recipe = tiny(**{f"distill.stages.2.{field}": value})
        configs = {link.steps: config for link, config in stages_of(recipe) for link in [link]}
        assert getattr(configs[2], field) == value
        assert configs[4] == configs[1]
        assert {name for name in TRAINING if getattr(configs[2], name) != getattr(configs[4], name)} <= {field}


def test_a_stage_overrides_options_of_the_method(tiny: Callable[..., Recipe]) -> None:
    how = {"distill.method": "adversarial", "distill.options": {"weight": 0.5, "judged": "teacher"}}
    plan = tiny(**how, **{"distill.stages.2.options": {"weight": 0.0}}).plan()
    options = {count: plan.method_of(count).options for count in (4, 2, 1)}
    assert {count: each.weight for count, each in options.items()} == {4: 0.5, 2: 0.0, 1: 0.5}
    assert {each.judged for each in options.values()} == {"teacher"}
    with pytest.raises(UserError, match=r"weight is -1\.0, expected a number from 0"):
        tiny(**how, **{"distill.stages.2.options": {"weight": -1.0}})
    with pytest.raises(UserError, match="of method progressive is unknown: it has none"):
        tiny(**{"distill.options": {"weight": 0.5}})
    with pytest.raises(UserError, match="initial requires a chain of one stage"):
        tiny(**{"distill.initial": "student"})


def test_a_method_brings_defaults_of_its_own(tiny: Callable[..., Recipe]) -> None:
    """Adam without a mean of the gradients for students that have a discriminator, unless another one is asked for."""
    plain, adversarial = tiny(), tiny(**{"distill.method": "adversarial"})
    chosen = tiny(**{"distill.method": "adversarial", "distill.adam_beta1": 0.5})
    first = [recipe.student_config(1).adam_beta1 for recipe in (plain, adversarial, chosen)]
    assert first == [0.9, 0.0, 0.5]
    assert adversarial.student_config(1).adam_beta2 == 0.99
    assert adversarial.teacher.adam_beta1 == adversarial.conversion.adam_beta1 == 0.9


def test_class_conditioning_needs_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=np.zeros((5, 8, 8), np.uint8))
    (tmp_path / "r.yaml").write_text(TINY.replace("digits}", f"npz:{tmp_path}/plain.npz" + "}"))
    with pytest.raises(UserError, match="has no labels"):
        untrained_of(read_recipe(str(tmp_path / "r.yaml"), ["network.class_conditional=true"]))


def test_every_field_of_stage_0(stock: SaveStock) -> None:
    """conversion.* changes the configuration of the teacher's stage."""
    how = {"updates": 8, "batch": 8, "learning_rate": 0.1, "lr_scheduler": "linear"}
    base = Conversion(**how)
    changes = {
        "updates": 9, "batch": 16, "learning_rate": 0.5, "warmup": 9, "lr_scheduler": "constant", "weight_decay": 0.1,
        "max_grad_norm": 0.5, "ema": 0.5, "gradient_accumulation_steps": 2, "precision": "bf16", "checkpoint_every": 77,
        "gradient_checkpointing": True, "compile": True, "cuda_graphs": True, "lora_rank": 3, "max_skipped_updates": 2,
        "optimizer": "adamw8bit", "adam_beta1": 0.5, "adam_beta2": 0.95,
    }  # fmt: skip
    for field, value in changes.items():
        config = Conversion(**{**how, field: value}).overridden()
        assert getattr(config, field) == value != getattr(base, field)
    of_the_student = {"weighting", "guidance", "null_class", "negative", "zero_terminal_snr"}
    assert set(changes) == {field.name for field in fields(Conversion)} - of_the_student == set(OPTIONS)


def test_every_field_of_the_teachers_samples(stock: SaveStock, tmp_path: Path) -> None:
    """data.source, data.steps and data.prompts say what is made; without data.steps 50 of 200 are taken."""
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    content = {"name": "a", "teacher": {"model": str(stock())}, "distill": {"chain": [200, 4]}}

    def made(**data: object) -> TeacherSamples:
        recipe = Recipe.model_validate({**content, "data": {"source": "teacher:7", **data}})
        samples = open_run(recipe, tmp_path / "out", SilentCallback()).context.samples
        assert samples
        return samples

    assert (made().count, made().steps, made().evaluations) == (7, 50, 50)
    assert (made(source="teacher:9").count, made(steps=25).steps) == (9, 25)
    assert made().fingerprint not in (made(source="teacher:9").fingerprint, made(steps=25).fingerprint)
    with pytest.raises(UserError, match="prompts applies only to text-to-image teachers"):
        made(prompts=str(tmp_path / "p.txt"))
    content["teacher"] = {"model": str(write_sd(tmp_path / "sd"))}
    assert made(prompts=str(tmp_path / "p.txt")).classes == ("a cat", "a dog")
    for where in ({"source": "digits", "prompts": "p.txt"}, {"source": "digits", "steps": 4}, {"source": "teacher"}):
        with pytest.raises(ValueError, match=r"samples of the teacher|requires a count"):
            Recipe.model_validate({**content, "data": where})


def test_the_bits_of_the_base_are_those_of_a_lora_run() -> None:
    content = {
        "name": "a",
        "data": {"source": "digits"},
        "teacher": {"model": "somewhere"},
        "distill": {"chain": [8, 4]},
    }
    for bits in (None, 8, 4):
        assert Recipe.model_validate({**content, "lora": 3, "base_bits": bits}).plan().base_bits == bits
    with pytest.raises(ValueError, match="base_bits requires lora"):
        Recipe.model_validate({**content, "base_bits": 8})
    with pytest.raises(ValueError, match="base_bits"):
        Recipe.model_validate({**content, "lora": 3, "base_bits": 16})


def test_lora_is_the_rank_of_every_stage() -> None:
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": "stock"}}
    plain, low = (Recipe.model_validate({**content, "lora": rank}) for rank in (None, 3))
    for recipe, rank in ((plain, 0), (low, 3)):
        assert recipe.plan().conversion.lora_rank == rank
        assert {recipe.student_config(link.steps).lora_rank for link in recipe.distill.links()} == {rank}
    with pytest.raises(ValueError, match="lora keeps the schedule"):
        Recipe.model_validate({**content, "lora": 3, "conversion": {"zero_terminal_snr": True}})
    with pytest.raises(ValueError, match=r"lora requires teacher\.model"):
        Recipe.model_validate({**content, "lora": 3, "teacher": {}, "network": {"width": 8, "multipliers": [1]}})
