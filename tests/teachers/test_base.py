"""What a stock pipeline is called and under which licence it is, and that its students keep it."""

import json
from pathlib import Path

import pytest

from progdist import UserError
from progdist._utils.files import read_json
from progdist.methods.guidance import Fixed
from progdist.models.model import Base
from progdist.students.folder import save
from progdist.teachers.base import base_of, hub_name, licence, read_base
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from progdist.teachers.prepared import Source, prepare
from support.lora import kohya, weights, write
from support.text import text_student, write_sd

CARD = """---
license: "creativeml-openrail-m"
tags: [a]
---
# A base
license: mit
"""


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (CARD, {"license": "creativeml-openrail-m"}),
        (
            "---\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\nlicense_link: LICENSE.md\n---\n",
            {"license": "other", "license_name": "flux-1-dev-non-commercial-license", "license_link": "LICENSE.md"},
        ),
        ("---\nlicense: openrail++\n---\n", {"license": "openrail++"}),
        ("---\nlicense: other\n---\n", {"license": "other"}),
        ("---\nlicense: a<b>\n---\n", {}),
        ("---\nlicense_name: mine\n---\n", {}),
        ("# license: mit\n", {}),
        ("---\ntags: []\n---\nlicense: mit\n", {}),
        ("---\nlicense: mit\n", {}),
        ("\x00\x01", {}),
    ],
)
def test_the_licence_of_a_base(card: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence(tmp_path) == expected
    assert licence(tmp_path / "absent") == {}


def test_names(tmp_path: Path) -> None:
    """Of the hub by how it was named, or by where its cache lies; of any other folder the last part of its path."""
    cached = tmp_path / "models--owner--some--name" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    assert hub_name("hub:owner/name@main", tmp_path) == "hub:owner/name"
    assert hub_name(str(cached), cached) == "hub:owner/some--name"
    assert hub_name(str(tmp_path), tmp_path) is None
    assert base_of(str(tmp_path), tmp_path).name == tmp_path.name
    assert base_of(str(tmp_path), tmp_path, "hub:a/b") == Base("hub:a/b", {})
    assert (Base("hub:a/b").repository, Base("mine").repository) == ("a/b", None)


@pytest.mark.parametrize("content", [[], {"name": 3}, {"name": "a\nb"}, {"license": {}}, "hub:a/b"])
def test_damage_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a name and a licence"):
        read_base(content, tmp_path / "progdist.json")
    assert read_base(None, tmp_path) is None
    assert read_base({"name": "a", "license": {"license": "a\n---"}}, tmp_path) == Base("a", {})


def test_students_keep_it(tmp_path: Path) -> None:
    """In their folder and its card, and so do the students of a teacher with a LoRA file."""
    teacher = write_sd(tmp_path / "models--owner--name" / "snapshots" / "01" / "sd")
    (teacher / "README.md").write_text(CARD)
    student = text_student(teacher, Fixed(3.0))
    assert student.base == Base("sd", {"license": "creativeml-openrail-m"})
    save(student, tmp_path / "student")
    assert load(tmp_path / "student").base == student.base
    card = (tmp_path / "student" / "README.md").read_text()
    assert 'license: "creativeml-openrail-m"' in card
    assert "base_model" not in card  # its name on the hub is not known
    file = write(kohya(weights(teacher)), tmp_path / "style.safetensors")
    prepared = prepare(Source(str(teacher), [str(file)]), tmp_path / "prepared")
    assert open_teacher(str(prepared)).model.base == student.base
    place = tmp_path / "student" / "progdist.json"
    place.write_text(json.dumps(read_json(place) | {"base": {"name": 1}}))
    with pytest.raises(UserError, match=r"is damaged: progdist\.json: base is"):
        load(tmp_path / "student")
