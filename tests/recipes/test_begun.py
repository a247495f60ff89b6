"""A folder of another recipe's run is told from the two files alone, and one that may be continued is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from progdist._utils.errors import UserError
from progdist.recipes.begun import UNSTATED, check_begun
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.stated import stated
from support.commands import TINY, call, refused


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run of the tiny recipe, as far as it says what it is of; the recipe lies beside it."""
    recipe, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(TINY)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(write_recipe(read_recipe(str(recipe), ["seed=3"])))
    (folder / "data.json").write_text("{}")
    return folder


def check(begun: Path, *overrides: str) -> None:
    check_begun(stated(str(begun.parent / "tiny.yaml"), overrides), begun)


def test_what_may_be_continued_is_let_through(begun: Path) -> None:
    check(begun, "seed=3")
    check(begun, "seed=3", "teacher.updates=99", "distill.updates=9", "evaluate.precision=auto", "tracking=tensorboard")
    check_begun(stated("digits"), begun.parent)  # no run is there
    (begun / "recipe.yaml").write_text("[")
    check(begun)  # said where the file is read whole


def test_another_recipe_is_told_with_both_values(begun: Path) -> None:
    for overrides, said in (
        ((), r"seed \(there 3, here 0\)"),
        (("seed=3", "network.width=16"), r"network.width \(there 8, here 16\)"),
        (("name=a", "seed=4", "evaluate.features=[pixels]", "network.width=4"), r"network.width .* and 1 more"),
    ):
        with pytest.raises(UserError, match=f"another recipe, which differs in .*{said}.*--fresh"):
            check(begun, *overrides)
    (begun / "teacher").mkdir()
    with pytest.raises(UserError, match=r"teacher.updates \(there 12, here 99\)"):
        check(begun, "seed=3", "teacher.updates=99")


def test_what_a_recipe_does_not_say_is_its_default() -> None:
    assert {name: Recipe.model_fields[name].default for name in UNSTATED} == UNSTATED


def test_the_commands_say_so_before_torch_is_imported(begun: Path) -> None:
    command = ["run", str(begun.parent / "tiny.yaml"), "--out", str(begun), "--seed", "3", "--set", "network.width=16"]
    script = "import sys; from progdist.cli.app import app\ntry: app(sys.argv[1:])\nfinally: assert 'torch' not in sys."
    script += "modules"
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "network.width (there 8, here 16)" in done.stderr
    refused(call("distill", "my-model", "--data", "digits", "--out", begun), "my-model distilled to 4 steps", "--fresh")
    refused(call(*command[:-4], "--seed", "3", "--set", "seed=3"), "--seed and --set seed=... both set the seed")
