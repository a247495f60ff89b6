"""`--fresh` moves a run aside, and nothing else: not before everything is checked, and nobody's data."""

from pathlib import Path

import pytest

from progdist._utils.errors import UserError
from progdist._utils.locks import LOCK_FILE
from progdist.recipes.files import read_recipe
from progdist.runs.folder import RunFolder
from progdist.runs.run import open_run
from support.commands import SilentCallback, call, refused


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def begun(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The folder of a run that has just begun."""
    run = open_run(read_recipe(str(tiny_recipe)), tmp_path / "run", SilentCallback())
    with run.folder.locked():
        run.claim()
    return tmp_path / "run"


@pytest.mark.parametrize("files", [["thesis.txt"], ["recipe.yaml", "data.npz"], ["a/b.png"], [LOCK_FILE, "a.txt"]])
def test_what_is_no_run_is_not_moved(tiny_recipe: Path, tmp_path: Path, files: list[str]) -> None:
    home = tmp_path / "home"
    for name in files:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    before = tree(tmp_path)
    for more in (["--fresh"], []):
        refused(call("run", tiny_recipe, "--out", home, *more), f"{home} exists and is not a run: choose another --out")
    assert tree(tmp_path) == before


def test_a_recipe_written_by_hand_is_not_replaced(tiny_recipe: Path, tmp_path: Path) -> None:
    """`--out .` beside it would write the resolved one in its place."""
    (tmp_path / "home").mkdir()
    mine = tmp_path / "home" / "recipe.yaml"
    mine.write_text(f"# mine\n{tiny_recipe.read_text()}")
    refused(call("run", mine, "--out", mine.parent), f"{mine.parent} exists and is not a run: choose another --out")
    assert mine.read_text().startswith("# mine")


@pytest.mark.parametrize(
    "setting", ["data.source=folder:/not/there", "evaluate.guidance=3", "evaluate.reference={inception: a.npz}"]
)
def test_a_recipe_that_is_refused_moves_nothing(tiny_recipe: Path, tmp_path: Path, begun: Path, setting: str) -> None:
    before = tree(tmp_path)
    refused(call("run", tiny_recipe, "--out", begun, "--fresh", "--set", setting))
    assert tree(tmp_path) == before


def test_what_is_checked_is_the_new_run(tiny_recipe: Path, tmp_path: Path, begun: Path) -> None:
    """Neither the recipe nor the models of the old one count; another run of the folder does."""
    other = read_recipe(str(tiny_recipe), ["seed=5", "teacher.batch=4"])
    with pytest.raises(UserError, match=r"differs in seed \(there 0, here 5\), teacher.batch \(there 8, here 4\): "):
        open_run(other, begun, SilentCallback()).prepare()
    run = open_run(other, begun, SilentCallback(), fresh=True)
    run.prepare()
    assert (begun / "recipe.yaml").is_file()
    new = run._moved_aside()
    assert not begun.exists()
    assert (tmp_path / "run.old-1" / "recipe.yaml").is_file()
    assert not new.context.fresh
    assert RunFolder(tmp_path / "nothing").move_aside() is None
