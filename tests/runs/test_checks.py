"""What is refused before a run begins, the precision that it keeps, and the notice where bf16 is emulated."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from progdist._utils.errors import UserError
from progdist.recipes.files import read_recipe, validated, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.runs.checks import check_folder
from progdist.runs.folder import RunFolder
from progdist.runs.run import open_run
from progdist.training.checkpoint import Checkpoint
from progdist.training.distributed import Distributed
from support.commands import SilentCallback, call
from support.stock import SaveStock

AUTO = ("--set", "teacher.precision=auto", "--set", "distill.precision=auto", "--set", "evaluate.precision=auto")


SHORT = ("--set", "teacher.updates=2", "--set", "distill.chain=[8, 4]", "--set", "evaluate.samples=16")


@pytest.mark.slow
def test_the_choice_is_recorded_and_kept_elsewhere(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist.compute.precision.bf16_speedup", lambda device: 0.1)
    monkeypatch.setattr("progdist.runs.checks.bf16_speedup", lambda device: 0.1)
    arguments = ("run", tiny_recipe, "--out", tmp_path / "run", *SHORT, *AUTO)
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "precision: float32 (bf16 is 10 times slower here)" in result.output
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [recipe[part]["precision"] for part in ("teacher", "distill", "evaluate")] == ["float32"] * 3
    description = json.loads((tmp_path / "run" / "student-0004" / "progdist.json").read_text())
    assert description["training"]["precision"] == "float32"
    monkeypatch.setattr("progdist.compute.precision.bf16_speedup", lambda device: 3.0)
    again = call(*arguments)
    assert again.exit_code == 0, again.output
    expected = "teacher and distill and evaluate: float32, as the run was started; here bf16 is faster"
    assert expected in " ".join(again.output.split())
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == recipe


@dataclass
class Several:
    """So many processes, as the first of them sees them."""

    count: int
    shards: bool = False

    @property
    def processes(self) -> Any:  # noqa: ANN401
        return SimpleNamespace(num_processes=self.count)

    def on_main_process(self, find: Callable[[], object]) -> object:
        return find()


def prepare(recipe: Recipe, out: Path, processes: Several) -> None:
    run = open_run(recipe, out, SilentCallback())
    replace(run, context=replace(run.context, distributed=cast(Distributed, processes))).prepare()


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ([], Several(3), r"teacher: batch 8 is not divisible by 3 "),
        (["distill.batch=9"], Several(2), r"student-0004: batch 9 is not divisible by 2 "),
        (["distill.stages.1.gradient_accumulation_steps=4"], Several(4), r"student-0001: batch 8 .* by 16 "),
        ([], Several(2, shards=True), "teacher: sharding requires .* set ema to 0"),
        (["teacher.ema=0", "distill.ema=0.9"], Several(2, shards=True), "student-0004: sharding requires .* ema to 0"),
        (["teacher.ema=0", "distill.stages.2.optimizer=adamw8bit"], Several(2, shards=True), "student-0002: optimizer"),
    ],
)
def test_what_several_processes_cannot_train_is_found_before_the_teacher(
    tiny_recipe: Path, tmp_path: Path, settings: list[str], processes: Several, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(read_recipe(str(tiny_recipe), settings), tmp_path / "run", processes)
    assert not (tmp_path / "run").exists()


def test_what_is_not_trained_is_not_checked(stock: SaveStock, tiny_recipe: Path, tmp_path: Path) -> None:
    """A finished model may have been trained by another number of processes; stage 0 is of teachers that need one."""
    recipe, out = read_recipe(str(tiny_recipe), ["teacher.batch=9"]), tmp_path / "run"
    run = open_run(recipe, out, SilentCallback())
    run.claim()
    with pytest.raises(UserError, match="teacher: batch 9"):
        prepare(recipe, out, Several(2))
    run.folder.model("teacher").mkdir()
    prepare(recipe, out, Several(2))
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(stock()), "trust": True}}
    content |= {"conversion": {"batch": 9}, "distill": {"batch": 8, "start": 8}}
    with pytest.raises(UserError, match="converted: batch 9"):  # eps
        prepare(validated(content, [], "test"), tmp_path / "given", Several(2))


@pytest.mark.parametrize("change", ["method=stochastic", "weighting=constant", "batch=4", "ema=0.5", "lora_rank=2"])
def test_a_stage_under_way_goes_on_as_it_was_begun(tiny_recipe: Path, tmp_path: Path, change: str) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(write_recipe(read_recipe(str(tiny_recipe))), lambda old: "")
    context = open_run(read_recipe(str(tiny_recipe), [f"distill.{change}"]), folder.root, SilentCallback()).context
    folder.checkpoints("teacher").save(Checkpoint(4, {}, {}))
    check_folder(context)  # no student has begun
    folder.model("teacher").mkdir()
    folder.checkpoints("student-0004").save(Checkpoint(2, {}, {}))
    with pytest.raises(UserError, match=f"student-0004 is half trained with another distill.{change.split('=')[0]}: "):
        check_folder(context)
    another = read_recipe(str(tiny_recipe), ["distill.learning_rate=1e-4", "distill.updates=9"])
    check_folder(replace(context, recipe=another))
    folder.checkpoints("student-0004").clear()
    check_folder(context)


@pytest.mark.slow
def test_bf16_where_it_is_emulated_is_one_line(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist.compute.precision.bf16_speedup", lambda device: 0.1)
    result = call("run", tiny_recipe, "--out", tmp_path / "run", *SHORT, "--set", "distill.precision=bf16")
    assert result.exit_code == 0, result.output
    assert " ".join(result.output.split()).count("10.0 times as fast in float32") == 1


def test_a_run_does_not_go_on_with_another_stage_0(stock: SaveStock, tmp_path: Path) -> None:
    """Neither where one appears that was not there, nor where one is gone; its budget may change once it is done."""
    v = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)  # unguided it needs no stage 0
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(stock(v, 11)), "trust": True}}
    content |= {"conversion": {"precision": "float32"}, "evaluate": {"precision": "float32"}}
    content |= {"distill": {"batch": 8, "start": 8, "precision": "float32"}}
    guided = {**content, "conversion": {"guidance": 3.0, "null_class": 10, "precision": "float32"}}
    for number, (begun, other, finished) in enumerate([(content, guided, "teacher"), (guided, content, "converted")]):
        folder = RunFolder(tmp_path / str(number))
        folder.claim(write_recipe(validated(begun, [], "test")), lambda old: "")
        folder.model(finished).mkdir()
        folder.checkpoints("student-0004").save(Checkpoint(2, {}, {}))
        same = open_run(validated(begun, ["distill.updates=9"], "test"), folder.root, SilentCallback()).context
        check_folder(same)
        with pytest.raises(UserError, match="another recipe"):
            check_folder(open_run(validated(other, [], "test"), folder.root, SilentCallback()).context)
