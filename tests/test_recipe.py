"""Every field of a recipe changes what is built; every mistake in one is a line that names the remedy."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from conftest import TINY, SilentCallback, call
from progdist import UserError
from progdist.recipes.files import read_recipe, shipped, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import StageTraining, train_config
from progdist.runs.folder import RunFolder
from progdist.runs.run import Run
from progdist.runs.stages import RunStages
from progdist.training.config import TrainConfig
from progdist.training.distributed import Distributed

Seen = Callable[[Recipe], Any]


def a_run(recipe: Recipe, folder: Path = Path("/nowhere")) -> Run:
    return Run(recipe, RunFolder(folder), SilentCallback(), Distributed())


def the_network(recipe: Recipe) -> Any:  # noqa: ANN401
    network = a_run(recipe).stages.untrained().denoiser.network
    config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}  # pyright: ignore
    return config, {key: tuple(value.shape) for key, value in network.state_dict().items()}


def the_weights(recipe: Recipe) -> Any:  # noqa: ANN401
    return [p.sum().item() for p in a_run(recipe).stages.untrained().denoiser.network.parameters()]


def the_schedule(recipe: Recipe) -> Any:  # noqa: ANN401
    denoiser = a_run(recipe).stages.untrained().denoiser
    return denoiser.schedule, denoiser.timesteps


def the_images(recipe: Recipe) -> Any:  # noqa: ANN401
    images = a_run(recipe).images
    return images.name, images.shape, images[3][0].flatten()[:40].tolist()


def the_batches(recipe: Recipe) -> Any:  # noqa: ANN401
    """What `train` is given, without training."""
    given: dict[str, Any] = {}

    def spy(network: object, loss: object, batches: Any, config: TrainConfig, **rest: object) -> None:  # noqa: ANN401
        given.update(flip=batches.flip, workers=batches.workers, size=batches.size, plan=config)
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("progdist.runs.stage_trainer.train", spy)
        with TemporaryDirectory() as folder, pytest.raises(UserError, match="seen"):
            a_run(recipe, Path(folder)).stages.teacher()
    return given


def the_weighting(recipe: Recipe) -> Any:  # noqa: ANN401
    """The losses of one batch of the teacher's training and of the first stage."""
    losses = []

    def spy(network: Any, loss: Any, batches: Any, config: TrainConfig, **rest: object) -> None:  # noqa: ANN401
        losses.append(loss(network, next(batches(0, 1, slice(0, 8)))).tolist())
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr("progdist.runs.stage_trainer.train", spy)
        run = a_run(recipe, Path(folder))
        with pytest.raises(UserError, match="seen"):
            run.stages.teacher()
        model = run.stages.untrained()
        torch.nn.init.normal_(model.denoiser.network.conv_out.weight)  # pyright: ignore
        with pytest.raises(UserError, match="seen"):
            run.stages.student(1, recipe.distill.links()[0], model)
    return losses


def the_teachers_plan(recipe: Recipe) -> Any:  # noqa: ANN401
    return train_config(recipe.teacher)


def the_stages(recipe: Recipe) -> Any:  # noqa: ANN401
    return [(link, recipe.distill.plan(link)) for link in recipe.distill.links()]


def the_samples(recipe: Recipe) -> Any:  # noqa: ANN401
    """How the evaluation samples: how many, and what sample_in_batches and quality are told."""
    told: list[Any] = []

    def spy(model: object, noise: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        options.pop("draw")  # a generator equals itself alone
        told.append((tuple(noise.shape), rest[1:], options))
        return noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("progdist.runs.run.sample_in_batches", spy)
        run = a_run(recipe)
        run.samples(run.stages.untrained(), 4)
    return told


def the_spaces(recipe: Recipe) -> Any:  # noqa: ANN401
    return [space.name for space, _ in a_run(recipe).spaces]


def the_evaluations(recipe: Recipe) -> Any:  # noqa: ANN401
    """Which models are measured, and with how many resamples, in a run whose training does nothing."""
    told: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStages, "teacher", RunStages.untrained)
        patch.setattr(RunStages, "student", lambda self, number, stage, model: model)
        patch.setattr(
            Run, "evaluate",
            lambda self, name, model, steps: told.append((name, steps, self.recipe.evaluate.resamples)),
        )  # fmt: skip
        patch.setattr(RunFolder, "claim", lambda *arguments: None)
        patch.setattr(Run, "_write_page", lambda self: None)
        with TemporaryDirectory() as folder:
            a_run(recipe, Path(folder)).run()
    return told


def the_stopping(recipe: Recipe) -> Any:  # noqa: ANN401
    """The held-out measurements of one stage."""
    with TemporaryDirectory() as folder:
        run = a_run(recipe, Path(folder))
        model = run.stages.untrained()
        torch.nn.init.normal_(model.denoiser.network.conv_out.weight)  # pyright: ignore
        run.stages.student(1, recipe.distill.links()[0], model)
        return [record for record in run.folder.read("metrics") if "held_out_loss" in record]


def the_complaint(recipe: Recipe) -> str:
    try:
        return a_run(recipe).images.name
    except UserError as error:
        return str(error)


CHANGES: dict[str, tuple[Any, Seen]] = {
    "name": ("other", lambda recipe: recipe.name),
    "about": ("words", lambda recipe: recipe.about),
    "seed": (7, the_weights),
    "parameterization": ("x_eps", the_network),
    "data.source": ("npz:{npz}", the_images),
    "data.classes": (7, the_complaint),
    "data.size": (4, the_images),
    "data.channels": (3, the_images),
    "data.resample": ("bilinear", the_images),
    "data.flip": (True, the_batches),
    "data.workers": (2, the_batches),
    "noise.kind": ("linear", the_schedule),
    "noise.log_snr_max": (10, the_schedule),
    "noise.log_snr_min": (-10, the_schedule),
    "noise.timesteps": (512, the_schedule),
    "network.width": (16, the_network),
    "network.multipliers": ([1, 1], the_network),
    "network.blocks": (2, the_network),
    "network.attention": ([4], the_network),
    "network.head_size": (2, the_network),
    "network.embedding": (64, the_network),
    "network.groups": (8, the_network),
    "network.dropout": (0.3, the_network),
    "network.class_conditional": (True, the_network),
    "teacher.weighting": ("snr_plus_one", the_weighting),
    "distill.start": (16, the_stages),
    "distill.end": (2, the_stages),
    "distill.substeps": (8, the_stages),
    "distill.chain": ([32, 8, 1], the_stages),
    "distill.weighting": ("constant", the_weighting),
    "distill.stop.every": (2, the_stopping),
    "distill.stop.window": (2, the_stopping),
    "distill.stop.fraction": (0.9, the_stopping),
    "distill.stop.held_out": (24, the_stopping),
    "distill.stages": ({1: {"updates": 9}}, the_stages),
    "evaluate.samples": (97, the_samples),
    "evaluate.batch": (50, the_samples),
    "evaluate.precision": ("bf16", the_samples),
    "evaluate.clip": (True, the_samples),
    "evaluate.features": (["pixels"], the_spaces),
    "evaluate.resamples": (11, the_evaluations),
    "evaluate.teacher_every": (2, the_evaluations),
    "evaluate.most_steps": (2, the_evaluations),
}
PLANS = {
    "updates": 99, "batch": 16, "learning_rate": 0.5, "warmup": 9, "weight_decay": 0.1,
    "max_grad_norm": 0.5, "ema": 0.5, "gradient_accumulation_steps": 2, "precision": "bf16", "checkpoint_every": 77,
    "gradient_checkpointing": True, "lora_rank": 3, "max_skipped_updates": 2,
}  # fmt: skip
for _section, _seen in (("teacher", the_teachers_plan), ("distill", the_stages)):
    _fields = Recipe.model_fields[_section].annotation.model_fields  # pyright: ignore
    CHANGES |= {f"{_section}.{key}": (value, _seen) for key, value in PLANS.items() if key in _fields}
CHANGES |= {
    "teacher.lr_scheduler": ("linear", the_teachers_plan),
    "distill.lr_scheduler": ("constant", the_stages),
}


def leaves(part: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in part.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        part_of_it = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if part_of_it is not None and name != "stages":
            names += leaves(part_of_it, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


@pytest.fixture
def tiny(tiny_recipe: Path, tmp_path: Path) -> Callable[..., Recipe]:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 255, (5, 16, 16), dtype=np.uint8), labels=np.arange(5))

    def build(**changes: object) -> Recipe:
        texts = [f"{key}={value}".replace("{npz}", str(tmp_path / "images.npz")) for key, value in changes.items()]
        return read_recipe(str(tiny_recipe), texts)

    return build


def test_the_table_below_is_complete() -> None:
    taken = {
        name
        for name in leaves(Recipe)
        if name.startswith(("teacher.model", "teacher.offset", "teacher.trust", "match."))
    }
    assert sorted(CHANGES) == sorted(set(leaves(Recipe)) - taken)  # those are in test_own_teacher.py


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_what_is_built(tiny: Callable[..., Recipe], field: str) -> None:
    value, seen = CHANGES[field]
    base: dict[str, object] = {"data.resample": {"data.size": 4}}.get(field, {})  # pyright: ignore
    base |= {"network.head_size": {"network.attention": [4]}}.get(field, {})
    if ".stop." in field:
        base |= {"distill.stop": {"every": 1, "window": 1, "fraction": 0.0001, "held_out": 16}, "distill.updates": 5}
    assert seen(tiny(**base)) == seen(tiny(**base))
    assert seen(tiny(**base)) != seen(tiny(**base, **{field: value}))


def test_a_stage_overrides_only_what_it_says(tiny: Callable[..., Recipe]) -> None:
    for field in StageTraining.model_fields:
        value = {"updates": 50, "learning_rate": 0.25, "lr_scheduler": "constant"}[field]
        recipe = tiny(**{f"distill.stages.2.{field}": value})
        plans = {link.steps: plan for link, plan in the_stages(recipe) for link in [link]}
        assert getattr(plans[2], field) == value
        assert plans[4] == plans[1]
        assert {name for name in PLANS if getattr(plans[2], name) != getattr(plans[4], name)} <= {field}


def test_chains_are_data(tiny: Callable[..., Recipe]) -> None:
    links = tiny(**{"distill.chain": [1000, 500, 250, 125, 25, 5, 1], "noise.timesteps": 1000}).distill.links()
    assert [link.substeps for link in links] == [2, 2, 2, 5, 5, 5]
    assert [link.steps for link in tiny(**{"distill.start": 64, "distill.substeps": 4}).distill.links()] == [16, 4, 1]


def test_written_and_read_back_it_is_the_same(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny(**{"distill.stages": {1: {"updates": 9}}, "network.attention": [4], "noise.kind": "linear"})
    (tmp_path / "again.yaml").write_text(write_recipe(recipe))
    assert read_recipe(str(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.about


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("distill.update=5", "did you mean updates?"),
        ("distil.updates=5", "did you mean distill?"),
        ("distill.stages.4.update=5", "did you mean updates?"),
        ("distill.stages.3.updates=5", "not in the chain [8, 4, 2, 1]"),
        ("distill.updates=many", "distill.updates"),
        ("distill.updates=0", "greater than 0"),
        ("distill.start=12", "does not reach 1"),
        ("distill.chain=[8, 3]", "no multiple of 3"),
        ("noise.kind=cosin", "'cosine'"),
        ("evaluate.features=[]", "at least one"),
        ("distill.chain=[]", "at least 2"),
        ("distill.chain=[12, 6]", "set noise.timesteps"),
        ("distill={chain: [8, 4], start: 8}", "start has no effect beside chain"),
        ("match.guidance=2.0", "match is stage 0 of a teacher.model"),
        ("match.null_class=2", "match is stage 0 of a teacher.model"),
        ("distill.gradient_accumulation_steps=3", "3 gradient_accumulation_steps"),
        ("teacher.learning_rate=.inf", "finite"),
        ("noise.log_snr_max=.nan", "not above"),
        ("noise={kind: linear, log_snr_max: 3}", "of the cosine schedule"),
        ("network.multipliers=[]", "at least 1"),
        ("seed=18446744073709551616", "less than"),
        ("network.width=wide", "network.width"),
        ("name=../up", "name"),
        ("distill", "write key=value"),
        ("name.more=1", "not a section"),
        ("data=3", "data"),
    ],
)
def test_mistakes_are_named(tiny_recipe: Path, override: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe(str(tiny_recipe), [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "not a map"),
        ("a: [", "not YAML"),
        ("name: x", "data is missing"),
        ("!!python/object:os.x {}", "YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        read_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not text"):
        read_recipe(str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="did you mean digits"):
        read_recipe("digit")


def test_a_run_goes_on_under_what_changes_only_the_rest(tiny: Callable[..., Recipe]) -> None:
    old, slower = tiny(), tiny(**{"distill.learning_rate": 1e-4})
    assert slower.continues(old, {"teacher"})
    assert not slower.continues(old, {"teacher", "student-0004"})
    last = tiny(**{"distill.stages": {1: {"updates": 9}}})
    assert last.continues(old, {"teacher", "student-0004", "student-0002"})
    assert not last.continues(old, {"teacher", "student-0004", "student-0002", "student-0001"})
    assert tiny(**{"teacher.updates": 99}).continues(old, set())
    assert not tiny(**{"teacher.updates": 99}).continues(old, {"teacher"})
    assert not tiny(**{"distill.weighting": "constant"}).continues(old, {"teacher", "student-0004"})
    for change in ({"seed": 1}, {"network.width": 16}, {"distill.start": 16}, {"evaluate.samples": 50}):
        assert not tiny(**change).continues(old, set())


def test_class_conditioning_needs_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=np.zeros((5, 8, 8), np.uint8))
    (tmp_path / "r.yaml").write_text(TINY.replace("digits}", f"npz:{tmp_path}/plain.npz" + "}"))
    with pytest.raises(UserError, match="has no labels"):
        a_run(read_recipe(str(tmp_path / "r.yaml"), ["network.class_conditional=true"])).stages.untrained()


def test_recipes_of_earlier_versions_are_still_read(tmp_path: Path) -> None:
    """They were written whole: a chain beside the defaults of what it replaces, float32 in sections without effect."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{name: a, data: {source: digits}, teacher: {model: x, precision: float32}, match: {precision: bf16},"
        " distill: {start: 256, end: 1, substeps: 2, chain: [8, 4], precision: float32}}"
    )
    recipe = read_recipe(str(path))
    assert recipe.distill.counts() == [8, 4]
    assert recipe.precisions() == {"match": "bf16", "distill": "float32", "evaluate": "auto"}


def test_a_mistake_of_the_whole_recipe_reads_well(tiny_recipe: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe(str(tiny_recipe), ["network=null"])
    assert ": :" not in str(caught.value)
    assert "give either network" in str(caught.value)


def test_a_weighting_that_is_nothing_at_one_step_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ("--set", "noise.kind=rectified_flow", "--set", "parameterization=velocity")
    result = call("run", tiny_recipe, "--out", tmp_path / "run", *settings, "--set", "distill.weighting=snr")
    assert result.exit_code == 2, result.output
    assert "the weighting is 0 at t = 1" in result.stderr


def test_keys_of_version_0_1_are_read_with_a_notice(tiny_recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = ["teacher.microbatches=2", "teacher.clip=0.5", "distill.anneal=none", "distill.most_skips=3"]
    recipe = read_recipe(str(tiny_recipe), [*old, "distill.stages={4: {anneal: linear}}"])
    assert (recipe.teacher.gradient_accumulation_steps, recipe.teacher.max_grad_norm) == (2, 0.5)
    assert (recipe.distill.lr_scheduler, recipe.distill.max_skipped_updates) == ("constant", 3)
    assert recipe.distill.stages[4].lr_scheduler == "linear"
    notices = [record.getMessage() for record in caplog.records]
    assert any("teacher.microbatches is now called gradient_accumulation_steps" in notice for notice in notices)
    assert len(notices) == 6
