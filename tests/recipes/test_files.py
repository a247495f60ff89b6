"""Recipes are read, written and refused; every mistake is a line that names the remedy."""

from collections.abc import Callable
from pathlib import Path

import pytest

from progdist import UserError
from progdist.recipes.files import read_recipe, shipped, validated, write_recipe
from progdist.recipes.recipe import Recipe


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
    ("override", "message"),
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
        ("conversion.guidance=2.0", "conversion is stage 0 of a teacher.model"),
        ("conversion.lora_rank=2", "conversion is stage 0 of a teacher.model"),
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
def test_mistakes_are_named(tiny_recipe: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe(str(tiny_recipe), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "not a map"),
        ("a: [", "not YAML"),
        ("name: x", "data is missing"),
        ("!!python/object:os.x {}", "YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not text"):
        read_recipe(str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="did you mean digits"):
        read_recipe("digit")


def test_recipes_of_earlier_versions_are_still_read(tmp_path: Path) -> None:
    """They were written whole: a chain beside the defaults of what it replaces, float32 in sections without effect."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{name: a, data: {source: digits}, teacher: {model: x, precision: float32}, match: {precision: bf16},"
        " distill: {start: 256, end: 1, substeps: 2, chain: [8, 4], precision: float32}}"
    )
    recipe = read_recipe(str(path))
    assert recipe.distill.counts() == [8, 4]
    assert recipe.precisions() == {"conversion": "bf16", "distill": "float32", "evaluate": "auto"}


def test_a_mistake_of_the_whole_recipe_reads_well(tiny_recipe: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe(str(tiny_recipe), ["network=null"])
    assert ": :" not in str(caught.value)
    assert "give either network" in str(caught.value)


def test_keys_of_version_0_1_are_read_with_a_notice(tiny_recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = ["teacher.microbatches=2", "teacher.clip=0.5", "distill.anneal=none", "distill.most_skips=3"]
    recipe = read_recipe(str(tiny_recipe), [*old, "distill.stages={4: {anneal: linear}}"])
    assert (recipe.teacher.gradient_accumulation_steps, recipe.teacher.max_grad_norm) == (2, 0.5)
    assert (recipe.distill.lr_scheduler, recipe.distill.max_skipped_updates) == ("constant", 3)
    assert recipe.distill.stages[4].lr_scheduler == "linear"
    notices = [record.getMessage() for record in caplog.records]
    assert any("teacher.microbatches is now called gradient_accumulation_steps" in notice for notice in notices)
    assert len(notices) == 6


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_ask_for_auto(name: str) -> None:
    assert set(read_recipe(name).precisions().values()) == {"auto"}


def test_a_section_of_an_earlier_version_is_read(caplog: pytest.LogCaptureFixture) -> None:
    content = {
        "name": "a",
        "data": {"source": "digits"},
        "teacher": {"model": "folder"},
        "match": {"updates": 7, "microbatches": 2, "batch": 4},
        "conversion": {"updates": 5, "learning_rate": 0.5},
    }
    recipe = validated(content, (), "test")
    assert (recipe.conversion.updates, recipe.conversion.learning_rate) == (7, 0.5)
    assert recipe.conversion.gradient_accumulation_steps == 2
    assert "match is now called conversion" in caplog.text
