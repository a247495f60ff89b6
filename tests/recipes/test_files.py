"""Recipes are read, written and refused; every mistake is a line that names the remedy."""

from collections.abc import Callable
from pathlib import Path

import pytest

from progdist import UserError
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.shipped import shipped


def test_chains_are_data(tiny: Callable[..., Recipe]) -> None:
    links = tiny(
        **{"distill.chain": [1000, 500, 250, 125, 25, 5, 1], "noise.num_train_timesteps": 1000}
    ).distill.links()
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
        ("distill.updates=0", "distill: updates is 0, expected at least 1"),
        ("distill.start=12", "does not reach 1"),
        ("distill.chain=[8, 3]", "not a multiple of 3"),
        ("noise.kind=cosin", "use one of cosine"),
        ("evaluate.features=[]", "at least one"),
        ("distill.chain=[]", "at least 2"),
        ("distill.chain=[12, 6]", "stock samplers visit the same times: set e.g."),
        ("distill={chain: [8, 4], start: 8}", "start has no effect with chain"),
        ("conversion.guidance=2.0", "conversion.guidance requires teacher.model"),
        ("conversion.lora_rank=2", "conversion.lora_rank requires teacher.model"),
        ("distill.gradient_accumulation_steps=3", "3 gradient_accumulation_steps"),
        ("teacher.learning_rate=.inf", "finite"),
        ("teacher.lora_rank=2", "teacher.lora_rank has no effect"),
        ("noise.log_snr_max=.nan", "not above"),
        ("noise={kind: linear, log_snr_max: 3}", "apply only to the cosine schedule"),
        ("network.multipliers=[]", "at least 1"),
        ("seed=18446744073709551616", "less than"),
        ("network.width=wide", "network.width"),
        ("name=../up", "name"),
        ("distill", "write key=value"),
        ("name.more=1", "not a section"),
        ("data=3", "data"),
        ("distill.updates=true", "distill.updates is true, expected a number"),
        ("distill.stages.4.updates=true", "distill.stages.4.updates is true, expected a number"),
        ("network.attention=[true]", "network.attention.0 is true, expected a number"),
        ("distill.chain=8", "distill.chain is 8, expected a list, e.g. [8, 4]"),
        ("distill.chain=[8]", "distill.chain is [8], expected a list of at least 2"),
        ("evaluate=pixels", "evaluate is 'pixels', expected keys"),
        ("data.flip=perhaps", "data.flip is 'perhaps', expected true or false"),
        ("network.width=2.5", "network.width is 2.5, expected a whole number"),
        ("distill.learning_rate=fast", "distill.learning_rate is 'fast', expected a number"),
        ("data.channels=2", "data.channels is 2, expected 1 or 3"),
        ("data.size=0", "data.size is 0, expected more than 0"),
        ("distill.updates=yes", "distill.updates is 'yes', expected a whole number"),
        ("teacher.warmup=1:30", "teacher.warmup is '1:30', expected a whole number"),
        ("evaluate.samples=1" + 400 * "0", "expected less than 2^53"),
        ("teacher.learning_rate=1" + 400 * "0", "expected less than 2^53"),
        ("evaluate.samples=1" + 5000 * "0", "not YAML"),
        ("teacher.learning_rate=1e999", "exceeds the largest number"),
        ("a=" + 1000 * "[", "not YAML"),
        (".".join(3000 * "a") + "=1", "nested too deeply"),
        ("distill.²=1", "key distill is unknown: use updates"),
        ("distill.xyzzy=1", "key distill.xyzzy is unknown: use updates"),
        ("distill.stages.3.updates=5", "whose students take 4, 2, 1 steps"),
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


def test_what_was_got_is_said_once(tiny_recipe: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe(str(tiny_recipe), ["distill.method=foo"])
    assert str(caught.value).count("'foo'") == 1


def test_yes_is_a_truth_where_one_is_asked_for(tiny_recipe: Path) -> None:
    assert read_recipe(str(tiny_recipe), ["data.flip=yes"]).data.flip is True
    assert read_recipe(str(tiny_recipe), ["data.flip=off"]).data.flip is False


def test_a_mistake_of_the_whole_recipe_reads_well(tiny_recipe: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe(str(tiny_recipe), ["network=null"])
    assert ": :" not in str(caught.value)
    assert "expected either network" in str(caught.value)


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_ask_for_auto(name: str) -> None:
    assert set(read_recipe(name).precisions().values()) == {"auto"}
