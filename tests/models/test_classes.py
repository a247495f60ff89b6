"""Classes: a model's are matched to the data's by number or by name, and drawn in the data's shares."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import progdist
from progdist import Denoiser, UserError, evaluate
from progdist.data.images import Images
from progdist.data.sources import load_images
from progdist.evaluation.evaluate import drawn_from, images_for_model
from progdist.evaluation.generate import SamplingOptions
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.model import Model
from progdist.recipes.files import validated
from progdist.runs.run import open_run
from progdist.students.folder import save
from progdist.teachers.own import load
from support.commands import SilentCallback
from support.stock import SaveStock


def data(root: Path, **numbers: int) -> Images:
    """So many images in each of some class folders; `n7` is named 7."""
    for name, count in numbers.items():
        folder = root / (name[1:] if name[1:].isdigit() else name)
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), 10 * number).save(folder / f"{number}.png")
    return load_images(f"folder:{root}")


def fitted(names: Sequence[str], images: Images) -> tuple[list[str], list[str]]:
    """The name that the model has for each image's label, and what is told."""
    notes = list[str]()
    found = Classes(tuple(names)).fitted(images, notes.append)
    assert found.labels is not None
    return [str(names[label]) for label in found.labels.tolist()], notes


LEVELS = torch.tensor([-0.5, 0.9, 0.1, 0.7])


def makes_levels(denoiser: Denoiser) -> Denoiser:
    """The denoiser with a network that makes of every label an image of one value."""

    def make(z: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        return LEVELS[class_labels].view(-1, 1, 1, 1).expand_as(z)

    denoiser.network.forward = make
    return denoiser


def test_names_are_matched_in_any_order_and_spelling(tmp_path: Path) -> None:
    images = data(tmp_path, cat=1, Great_White_Shark=1, tench=2)
    names = ["goldfish, Carassius auratus", "tench, Tinca tinca", "dog", "great white shark", "cat"]
    found, (note,) = fitted(names, images)
    assert found == ["great white shark", "cat", "tench, Tinca tinca", "tench, Tinca tinca"]
    assert (
        note
        == f"{images.name} has 3 classes, the model 5: matched by name, Great_White_Shark is 3, cat is 4, tench is 1"
    )
    assert fitted(["Great_White_Shark", "cat", "tench"], images)[1] == []


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    numbers, ten = data(tmp_path / "a", n3=1, n7=1), [str(number) for number in range(10)]
    assert fitted(ten, numbers) == (["3", "7"], [])
    found, (note,) = fitted(list("abcdefghij"), numbers)
    assert found == ["d", "h"]
    assert note.endswith("has labels without names: taken as the model's by number, 3 is d, 7 is h")
    found, (note,) = fitted(ten, data(tmp_path / "b", dog=1, cat=1))
    assert found == ["0", "1"]
    assert note.endswith("which have no names: taken in order, cat is 0, dog is 1")
    with pytest.raises(UserError, match="has 8 classes, but the model has 5"):
        fitted(list("01234"), numbers)


def test_names_that_match_nothing_or_several_are_refused(tmp_path: Path) -> None:
    images = data(tmp_path, cat=1, crane=1)
    for names in (["cat", "dog", "horse"], ["cat", "crane, bird", "crane, machine"]):
        with pytest.raises(UserError, match="has the classes crane, but the model's are cat, ") as error:
            fitted(names, images)
        assert len(str(error.value)) < 400
    with pytest.raises(UserError, match=r"the model's are c0, c1, c2, c3, c4, ... \(1,000 in all\)"):
        fitted([f"c{number}" for number in range(1000)], images)


def test_classes_without_images_need_no_match() -> None:
    """Of the hundred names that a column knows, two have images."""
    names = tuple(f"c{number}" for number in range(100))
    images = Images("hub:a", 2, lambda index: torch.zeros(1, 2, 2), torch.tensor([70, 3]), names)
    assert fitted(["x", "C3", "y", "c70"], images)[0] == ["c70", "C3"]
    with pytest.raises(UserError, match="has 100 classes, but the model has 4"):
        fitted(["0", "1", "2", "3"], images)


def test_the_identifiers_of_imagenet_are_in_the_order_of_labels() -> None:
    identifiers = tuple(f"n{1440764 + 7 * number:08d}" for number in range(1000))
    images = Images("folder:imagenet", 1000, lambda index: torch.zeros(1, 2, 2), torch.arange(1000), identifiers)
    notes = list[str]()
    names = (*(f"c{number}" for number in range(1000)), "1000")
    assert Classes(names).fitted(images, notes.append).labels is images.labels
    assert "ImageNet" in notes[0]


def test_a_stream_has_the_labels_of_the_model(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    data(tmp_path / "images", cat=1)
    content = (tmp_path / "images" / "cat" / "0.png").read_bytes()
    rows = {"image": [content] * 4, "label": ["dog", "cat", "dog", "dog"]}
    parquet.write_table(Table.from_pydict(rows), tmp_path / "a.parquet")
    images = load_images(f"parquet:{tmp_path}/a.parquet")
    stream = Classes(("ant", "dog", "cat")).fitted(images, lambda text: None)
    assert stream.labels is not None
    assert stream.labels.tolist() == [1, 2, 1, 1]
    _, seen = next(stream.walk(64, range(1), (0, 1), (0, 1), (0, 0)))  # pyright: ignore[reportAttributeAccessIssue]
    assert {label for _, label in seen} == {1, 2}
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1, 1]  # the images themselves are as they were


@pytest.fixture
def model(tiny_model: Callable[..., Denoiser]) -> Model:
    return Model(tiny_model(classes=4), (2,), (4,), Classes(("ant", "bee", "cat", "none"), null_class=3))


def shares(options: SamplingOptions, model: Model) -> list[int]:
    return options.labels_of(model).bincount(minlength=4).tolist()


def test_classes_are_drawn_in_the_shares_of_the_data(tmp_path: Path, model: Model) -> None:
    """What data are given counts first, then what the model recorded, then all in turn; never the null class."""
    notes, options = list[str](), SamplingOptions(2, 40)
    images = data(tmp_path / "data", cat=1, bee=3)
    fit = images_for_model(model, images, notes.append)
    assert shares(drawn_from(model, options, fit), model) == [0, 30, 10, 0]
    learned = Model(model.denoiser, (2,), (4,), model.conditioning.of_data(fit))
    assert learned.conditioning.shares == (0, 3, 1, 0)
    assert shares(options, learned) == [0, 30, 10, 0]
    assert shares(SamplingOptions(2, 6), model) == [2, 2, 2, 0]
    for each, told in ((learned, 0), (model, 1)):
        notes.clear()
        options.check(each, notes.append)
        assert [note for note in notes if "in turn" in note] == notes
        assert len(notes) == told
    assert shares(SamplingOptions(2, 40, shares=(1, 0, 0, 9)), learned) == [40, 0, 0, 0]
    assert Conditioning().drawn(3).tolist() == [0, 0, 0]


def test_the_shares_are_kept_with_the_model(tmp_path: Path, model: Model) -> None:
    save(Model(model.denoiser, (2,), (4,), Classes(tuple("abcd"), shares=(5, 0, 2, 1))), tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.conditioning.shares == (5, 0, 2, 1)
    assert shares(SamplingOptions(2, 80), loaded) == [50, 0, 20, 10]
    text = (tmp_path / "model" / "progdist.json").read_text()
    for damaged in ('"class_counts": [5]', '"class_counts": [-1, 0, 0, 0]', '"class_counts": "abcd"'):
        start, end = text.index('"class_counts"'), text.index("]", text.index('"class_counts"')) + 1
        (tmp_path / "model" / "progdist.json").write_text(text[:start] + damaged + text[end:])
        with pytest.raises(UserError, match="is damaged"):
            load(tmp_path / "model")


def test_counts_of_classes_that_no_data_have_are_refused() -> None:
    wrong: list[Any] = [10**400, 10**5000, 2**62, 10**12, -1, -(10**5000), True, 1.5, "3", None]
    for count in wrong:
        with pytest.raises(UserError, match=r"class_counts of 3 classes are .* per class, up to") as error:
            Classes(("a", "b", "c"), shares=(count, 1, 0))
        assert len(str(error.value)) < 200


def test_large_counts_are_drawn_in_their_shares() -> None:
    quarter = 10**12 // 4
    drawn = Classes(tuple("abcd"), shares=(quarter, 0, quarter, 2 * quarter)).drawn(1_000_000)
    assert drawn.bincount(minlength=4).tolist() == [250_000, 0, 250_000, 500_000]


@pytest.mark.parametrize(("word", "label"), [("bee", 1), ("BEE", 1), ("2", 2), (0, 0)])
def test_a_label_is_a_number_or_a_name(model: Model, word: int | str, label: int) -> None:
    assert SamplingOptions(2, 3, word).labels_of(model).tolist() == [label] * 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("beee", "did you mean bee?"),
        ("7", "0 to 2"),
        (-1, "0 to 2"),
        ("none", "is the null class"),
        ("", "is not a class"),
    ],
)
def test_a_label_that_is_no_class(model: Model, word: int | str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        SamplingOptions(2, 3, word).labels_of(model)


def test_a_perfect_sampler_of_unequal_classes_is_measured_so(tiny_model: Callable[..., Denoiser]) -> None:
    """A model that makes each class's own image is at no distance, though classes are unequal or have no data."""
    images = [(torch.full((1, 8, 8), float(LEVELS[label])), label) for label in [0] * 30 + [2] * 10]
    denoiser = makes_levels(tiny_model(parameterization="x", classes=4))
    (record,) = evaluate((denoiser, 2), images, SamplingOptions(count=40))
    assert record.quality[0].frechet == pytest.approx(0, abs=1e-6)
    (record,) = evaluate((denoiser, 2), [image for image, _ in images], SamplingOptions(count=40))
    assert record.quality[0].frechet > 10  # of all four classes in turn


def test_texts_beside_examples_are_matched_by_name(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    """In memory as in folders: `bee` and `fly` are the classes 3 and 0 of the model, whatever place they have here."""
    model = tiny_model(parameterization="x", classes=4)
    save(Model(model, (2,), (4,), Classes(("fly", "emu", "cat", "bee"))), tmp_path / "m")
    denoiser, options, notes = makes_levels(progdist.load(tmp_path / "m")), SamplingOptions(count=40), list[str]()
    named = [("bee", 3)] * 30 + [("Fly", 0)] * 10
    images = [(torch.full((1, 8, 8), float(LEVELS[label])), name) for name, label in named]
    (record,) = evaluate((denoiser, 2), images, options, notify=notes.append)
    assert record.quality[0].frechet == pytest.approx(0, abs=1e-4)
    assert [note for note in notes if "matched by name, Fly is 0, bee is 3" in note]
    with pytest.raises(UserError, match="data has the classes dog, but the model's are fly, emu, cat, bee"):
        evaluate((denoiser, 2), [*images, (images[0][0], "dog")], options)
    evaluate((denoiser, 2), [(image, [0.5, 1]) for image, _ in images], options, notify=notes.append)
    assert "example 0 has a list of 2 for a label, which is not a class: read without labels" in notes


def test_what_load_gives_keeps_null_class_names_and_shares(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    kept = {"classes": ["cat", "none", "emu", "bee"], "null_class": 1, "class_counts": [30, 0, 10, 0]}
    classes = Classes(tuple(kept["classes"]), null_class=1, shares=(30, 0, 10, 0))
    save(Model(tiny_model(parameterization="x", classes=4), (2,), (4,), classes), tmp_path / "m")
    denoiser = progdist.load(tmp_path / "m")
    progdist.save(denoiser, tmp_path / "again")
    progdist.save(denoiser.with_parts(), tmp_path / "same parts")
    for folder in ("m", "again", "same parts"):
        described = json.loads((tmp_path / folder / "progdist.json").read_text())
        assert {name: described[name] for name in kept} == kept
    progdist.save(denoiser, tmp_path / "renamed", classes=list("abcd"), null_class=3)
    described = json.loads((tmp_path / "renamed" / "progdist.json").read_text())
    assert (described["classes"], described["null_class"]) == (list("abcd"), 3)
    progdist.save(denoiser.with_network(tiny_model(classes=3).network), tmp_path / "other")  # of other classes
    described = json.loads((tmp_path / "other" / "progdist.json").read_text())
    assert (described["classes"], "null_class" in described) == (["0", "1", "2"], False)
    images = [torch.full((1, 8, 8), float(LEVELS[label])) for label in [0] * 30 + [2] * 10]
    (record,) = evaluate((makes_levels(denoiser), 2), images, SamplingOptions(count=40))  # in the recorded shares
    assert record.quality[0].frechet == pytest.approx(0, abs=1e-4)


def test_a_run_takes_the_classes_of_its_teacher(stock: SaveStock, tmp_path: Path) -> None:
    """Two of four named classes, whose students record their shares; the fifth, without a name, stands for none."""
    data(tmp_path / "data", dog=2, ant=1)
    folder = stock(classes=5)
    index = json.loads((folder / "model_index.json").read_text())
    names = dict(enumerate(["ant", "bee", "cat, house cat", "dog"]))
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": names}))
    content = {"name": "a", "data": {"source": f"folder:{tmp_path}/data"}, "teacher": {"model": str(folder)}}
    callback = SilentCallback()
    run = open_run(validated(content, ("conversion.guidance=2",), "test"), tmp_path / "run", callback)
    assert run.context.images.labels is not None
    assert run.context.images.labels.tolist() == [0, 3, 3]
    assert [note for note in callback.notes if "matched by name, ant is 0, dog is 3" in note]
    assert run.context.teacher is not None
    conditioning = run.context.teacher.model.conditioning
    assert isinstance(conditioning, Classes)
    assert (conditioning.shares, conditioning.null_class) == ((1, 0, 0, 2, 0), 4)
    assert run.context.labels(300).bincount(minlength=5).tolist() == [100, 0, 0, 200, 0]


@pytest.mark.parametrize(
    ("names", "data_classes", "shares", "null"),
    [
        ("0 1 2", 2, (), 2),  # one more than the data
        ("ant bee 2", 1, (), 2),  # the one without a name
        ("ant bee none", 1, (), 2),
        ("None ant bee", 3, (0, 1, 1), 0),
        ("ant <null> bee", 3, (1, 0, 1), 1),
        ("ant NULL_CLASS 2", 1, (), 1),  # what is named so comes first
        ("0 1 2", 1, (), None),
        ("0 1 2", 3, (), None),
        ("ant bee cat", 1, (), None),
        ("ant bee cat", 2, (1, 1, 0), None),  # a class with a name means itself, though the data have one less
        ("ant bee cat", 3, (), None),
        ("ant 1 2", 1, (), None),  # two without names
        ("ant bee 2", 3, (), None),  # it has data
        ("ant none bee", 3, (1, 1, 1), None),
        ("none ant null", 2, (), None),
        ("ant nonesuch nullarbor", 2, (), None),
    ],
)
def test_the_null_class_is_taken_where_it_is_clear_and_told(
    names: str, data_classes: int, shares: tuple[int, ...], null: int | None
) -> None:
    classes, notes = Classes(tuple(names.split()), shares=shares), list[str]()
    how: dict[str, Any] = {"negative": None, "data_classes": data_classes, "notify": notes.append}
    if null is None:
        with pytest.raises(UserError, match=r"guidance requires a null class.*--set conversion.null_class=N"):
            classes.for_guidance(null_class=None, **how)
        assert not notes
    else:
        assert classes.for_guidance(null_class=None, **how).null_class == null
        assert f"away from class {null} ({names.split()[null]})" in notes[0]
    assert classes.for_guidance(null_class=1, **how).null_class == 1
    assert replace(classes, null_class=0).for_guidance(null_class=None, **how).null_class == 0  # as its folder says
    with pytest.raises(UserError, match="null_class is 3, expected a label below 3"):
        classes.for_guidance(null_class=3, **how)


def test_a_class_of_the_data_is_no_null_class_after_they_are_matched() -> None:
    """Data of the first and third of four named classes: guidance does not lead away from the fourth unasked."""
    images = Images("data", 2, lambda index: torch.zeros(1, 2, 2), torch.tensor([0, 1]), ("cat", "emu"))
    classes = Classes(("cat", "dog", "emu", "fox"))
    data = classes.fitted(images, lambda text: None)
    with pytest.raises(UserError, match="requires a null class"):
        classes.of_data(data).for_guidance(negative=None, null_class=None, data_classes=len(data.classes))
