"""The recipes that `progdist init` writes fit the data, follow the shipped ones, and can be run as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from progdist._utils.errors import UserError
from progdist.data.sources import open_source
from progdist.recipes.files import read_recipe
from progdist.recipes.from_teacher import Request
from progdist.recipes.proposal import FOLLOWED, LARGEST, Proposal, recipe_for_data, recipe_of_teacher
from progdist.recipes.recipe import Recipe
from progdist.recipes.shipped import shipped
from progdist.recipes.stated import name_of_data
from progdist.recipes.text import read_yaml
from progdist.runs.run import open_run
from progdist.teachers.open import open_teacher
from support.commands import SilentCallback, call, refused, succeeds
from support.paths import REFERENCE

Size = tuple[int, int]


def write(folder: Path, mode: str, sizes: list[Size], classes: int = 0) -> str:
    """A folder of noise of some (width, height), in turn in class folders if there are any; the source."""
    for number, (width, height) in enumerate(sizes):
        place = folder / f"class {number % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return f"folder:{folder}"


def prepared(recipe: Recipe, folder: Path) -> None:
    """What `progdist run --dry-run` does but for the estimate."""
    open_run(recipe, folder / "run", SilentCallback(), dry=True).prepare()


KINDS: dict[str, tuple[Callable[[Path], str], str, dict[str, Any], str]] = {
    "grey and tiny": (
        lambda folder: write(folder, "L", [(8, 8)] * 24),
        "digits", {"size": 8, "channels": 1}, "24 grey images of 8x8 pixels; used unchanged",
    ),
    "grey, halved twice": (
        lambda folder: write(folder, "L", [(30, 30)] * 24),
        "fashion-mnist", {"size": 28, "channels": 1}, "resampled to 28x28",
    ),
    "colour with alpha": (
        lambda folder: write(folder, "RGBA", [(72, 72)] * 24),
        "emoji", {"size": 32, "channels": 3, "background": "white"}, "24 coloured images of 72x72 pixels",
    ),
    "class folders": (
        lambda folder: write(folder, "RGB", [(32, 32)] * 24, classes=3),
        "emoji", {"size": 32, "channels": 3}, "used unchanged",
    ),
    "mixed sizes": (
        lambda folder: write(folder, "RGB", [(20, 31), (64, 48), (21, 21)] * 8),
        "emoji", {"size": 20, "channels": 3}, "of 3 sizes, whose shorter sides have 20 to 48 pixels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_fits_the_data(kind: str, tmp_path: Path) -> None:
    make, followed, data, said = KINDS[kind]
    images = open_source(make(tmp_path / "my images"))
    proposal = recipe_for_data(images, name_of_data(images.name))
    assert proposal.content["data"] == {"source": images.name, **data}
    assert said in proposal.reasons["data"]
    recipe, shipped_recipe = proposal.recipe(), read_recipe(followed)
    assert recipe.name == "my-images"
    assert recipe.network and recipe.network.class_conditional == (kind == "class folders")
    kept = ("teacher", "distill", "noise", "parameterization")
    assert all(getattr(recipe, part) == getattr(shipped_recipe, part) for part in kept)
    assert shipped_recipe.network
    conditional = {"class_conditional": recipe.network.class_conditional}
    assert recipe.network == shipped_recipe.network.model_copy(update=conditional)
    assert recipe.evaluate.features == ("pixels",)
    prepared(recipe, tmp_path)


@pytest.mark.parametrize("size", [2, 8, 12, 32, 40, 48, 64, 80, 112, 128])
def test_any_size_that_the_shipped_networks_halve(size: int, tmp_path: Path) -> None:
    images = open_source(write(tmp_path / "images", "RGB", [(40, 50)] * 3))
    recipe = recipe_for_data(images, "a", size).recipe()
    network = recipe.network
    assert network and recipe.data.size == size
    assert size % 2 ** (len(network.multipliers) - 1) == 0
    assert set(network.attention) <= {size >> level for level in range(len(network.multipliers))}
    assert recipe.data.resample == ("bilinear" if size > 40 else "area")
    followed = read_yaml(shipped()[next(names[1] for most, names in FOLLOWED.items() if size <= most)])
    assert len(network.attention) == len(followed["network"].get("attention", []))


def test_the_sizes_are_those_of_the_recipes_that_ship() -> None:
    for most, names in FOLLOWED.items():
        stated = {read_yaml(shipped()[name])["data"].get("size", most) for name in names}
        assert stated == {most}
    assert LARGEST in FOLLOWED


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    images = open_source(write(tmp_path / "images", "RGB", [(40, 50)] * 3))
    for size, said in ((129, "expected at most 128"), (34, "divisible by 8"), (3, "divisible by 2")):
        with pytest.raises(UserError, match=said):
            recipe_for_data(images, "a", size)
    for number in range(3):
        (tmp_path / "images" / f"{number}.txt").write_text("a cat")
    with pytest.raises(UserError, match="has captions"):
        recipe_for_data(open_source(f"captions:{tmp_path}/images"), "a")


@pytest.mark.usefixtures("known_rates")
def test_a_broken_file_is_named_and_an_empty_folder_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "images", "L", [(8, 8)] * 24)
    (tmp_path / "images" / "7.png").write_bytes(b"no image")
    output = succeeds("init", "folder:images", "--out", "a.yaml").output
    assert "1 of 24 images cannot be read, the first: images/7.png" in output
    assert "Next: progdist run a.yaml\n" in output
    prepared(read_recipe("a.yaml"), tmp_path)
    before = (tmp_path / "a.yaml").read_text()
    refused(call("init", "digits", "--out", "a.yaml"), "a.yaml exists: choose another --out, or replace it")
    assert (tmp_path / "a.yaml").read_text() == before
    (tmp_path / "empty").mkdir()
    refused(call("init", "folder:empty"), "folder:empty holds no images")
    refused(call("init", "images"), "use folder:images")
    refused(call("init", "digits", "--steps", 4), "--steps requires --data")
    refused(call("init", "my-model", "--data", "digits", "--size", 8), "--size has no effect with --data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "empty", "images"]


def test_the_recipe_of_a_teacher(tmp_path: Path) -> None:
    place = str(REFERENCE / "stock_teacher")
    teacher, request = open_teacher(place), Request(place, write(tmp_path / "a", "RGB", [(9, 10)] * 24), "a-4", 4)
    proposal = recipe_of_teacher(teacher, request)
    assert proposal.content["teacher"] == {"model": place}
    assert proposal.content["data"] == {"source": request.data, "size": 8, "channels": 1}
    assert "Stage 0 first converts it" in proposal.reasons["teacher"]
    recipe = proposal.recipe()
    assert recipe.distill.counts() == [200, 40, 8, 4]
    prepared(recipe.model_copy(update={"teacher": read_recipe_of(proposal, "trust: true").teacher}), tmp_path)


def read_recipe_of(proposal: Proposal, line: str) -> Recipe:
    """The recipe with a line more below its teacher, as one edits it."""
    text = proposal.text().replace("teacher:\n", f"teacher:\n  {line}\n")
    return Proposal(read_yaml(text), {}).recipe()


def test_every_section_says_why(tmp_path: Path) -> None:
    proposal = recipe_for_data(open_source(write(tmp_path / "a", "RGBA", [(8, 8)] * 3)), "a")
    text = proposal.text()
    assert read_yaml(text) == proposal.content
    lines = text.splitlines()
    for section in ("data:", "network:", "teacher:", "distill:", "evaluate:", "  background: white"):
        assert lines[lines.index(section) - 1].strip().startswith("# ")
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 110


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"), ("folder:~/my images/", "my-images"), ("hub:uoft-cs/cifar10", "cifar10"),
        ("wds:data/train-{000..009}.tar", "train"), ("parquet:data/*.parquet", "run"), ("npz:a.npz", "a.npz"),
    ],
)  # fmt: skip
def test_the_name_is_that_of_the_data(source: str, name: str) -> None:
    assert name_of_data(source) == name
