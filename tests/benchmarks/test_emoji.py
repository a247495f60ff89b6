"""Folders of emoji from packages that the test makes: what goes in, and what is refused."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from progdist.data.sources import load_images
from support.commands import succeeds
from support.paths import ROOT

Result = subprocess.CompletedProcess[str]
Colour = tuple[int, int, int, int]

RED, BLUE, GREEN = (255, 0, 0, 255), (0, 0, 255, 255), (0, 255, 0, 255)
HIDDEN = (0, 200, 0, 0)  # a colour that nobody sees


def picture(seen: Colour, hidden: Colour = (0, 0, 0, 0)) -> bytes:
    """A PNG of 8x8 with one colour on the left and a transparent one on the right."""
    image, file = Image.new("RGBA", (8, 8), hidden), BytesIO()
    image.paste(seen, (0, 0, 4, 8))
    image.save(file, "PNG")
    return file.getvalue()


def entry(image: str, name: str, category: str, order: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """One of emoji.json's."""
    return {"image": image, "name": name, "category": category, "sort_order": order, **more}


ENTRIES = [
    entry("1f1f3-1f1f4.png", "Norway Flag", "Flags", 20),
    entry("1f1f8-1f1ef.png", "Svalbard & Jan Mayen Flag", "Flags", 30),
    entry("1f600.png", "GRINNING FACE", "Smileys & Emotion", 1),
    entry("1f44b.png", "WAVING HAND SIGN", "People & Body", 2, skin_variations={"1F3FF": {"image": "1f44b-1f3ff.png"}}),
    entry("1f3ff.png", "EMOJI MODIFIER FITZPATRICK TYPE-6", "Component", 3),
]
PICTURES = {
    "1f1f3-1f1f4.png": picture(RED),
    "1f1f8-1f1ef.png": picture(RED, HIDDEN),  # looks the same
    "1f600.png": picture(BLUE, HIDDEN),
    "1f44b.png": picture(GREEN),
    "1f44b-1f3ff.png": picture((90, 60, 40, 255)),
    "1f3ff.png": picture((91, 60, 40, 255)),
}


def package(
    artwork: str = "google", entries: Sequence[Any] = ENTRIES, pictures: Mapping[str, bytes] = PICTURES
) -> dict[str, bytes]:
    """The files of an npm package, by name."""
    about = {"name": f"emoji-datasource-{artwork}", "version": "16.0.0"}
    files = {"package.json": json.dumps(about).encode(), "LICENSE": b"The package's own licence\n"}
    files["emoji.json"] = json.dumps(entries).encode()
    return files | {f"img/{artwork}/64/{name}": content for name, content in pictures.items()}


def pack(path: Path, files: Mapping[str, bytes], *members: tarfile.TarInfo) -> Path:
    """A tarball such as `npm pack` makes, with more members as they are."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
        for member in members:
            archive.addfile(member)
    return path


@pytest.fixture
def emoji(tmp_path: Path) -> Callable[..., Result]:
    """Runs the script in an empty folder."""
    (tmp_path / "desk").mkdir()

    def run(*arguments: object) -> Result:
        command = [sys.executable, ROOT / "benchmarks" / "tools" / "emoji.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path / "desk")

    return run


@pytest.fixture
def refused(emoji: Callable[..., Result], tmp_path: Path) -> Callable[..., None]:
    """Runs the script, which ends with 2 and one line that holds the fragment, and writes nothing."""

    def run(fragment: str, *arguments: object) -> None:
        before = sorted(tmp_path.rglob("*"))
        done = emoji(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("emoji.py: ")
        assert fragment in done.stderr
        assert sorted(tmp_path.rglob("*")) == before

    return run


def files_below(folder: Path) -> set[str]:
    """The paths of all files, relative to the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_classes_and_captions_are_made_of_a_tarball(emoji: Callable[..., Result], tmp_path: Path) -> None:
    """Skin tones and what looks the same as another are left out."""
    done = emoji(pack(tmp_path / "google.tgz", package()))
    assert done.returncode == 0, done.stderr
    assert "1 flags" in done.stdout
    assert "3 pictures in emoji" in done.stdout
    out = tmp_path / "desk" / "emoji"
    classes = {"flags": "1f1f3-1f1f4.png", "people-and-body": "1f44b.png", "smileys-and-emotion": "1f600.png"}
    assert files_below(out / "classes") == {f"{name}/google-{file}" for name, file in classes.items()}
    assert files_below(out / "captions") == {"metadata.jsonl", *(f"google-{file}" for file in classes.values())}
    lines = [json.loads(line) for line in (out / "captions" / "metadata.jsonl").read_text().splitlines()]
    texts = {"1f600.png": "grinning face", "1f44b.png": "waving hand sign", "1f1f3-1f1f4.png": "Norway Flag"}
    assert lines == [{"file_name": f"google-{file}", "text": text} for file, text in texts.items()]


def test_pictures_keep_their_bytes_and_are_composed_when_they_are_read(
    emoji: Callable[..., Result], tmp_path: Path
) -> None:
    emoji(pack(tmp_path / "google.tgz", package()))
    out = tmp_path / "desk" / "emoji"
    for file in ("classes/smileys-and-emotion/google-1f600.png", "captions/google-1f600.png"):
        assert (out / file).read_bytes() == PICTURES["1f600.png"]
    images = load_images(f"folder:{out / 'classes'}", size=8, background="black", notify=lambda line: None)
    assert images.classes == ("flags", "people-and-body", "smileys-and-emotion")
    x, label = images[2]
    assert images.classes[int(label)] == "smileys-and-emotion"
    assert (x[:, :, 4:] == -1).all()  # not the colour that is hidden there
    assert torch.equal(x[:, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
    captioned = load_images(f"captions:{out / 'captions'}", size=8, notify=lambda line: None)
    assert sorted(captioned.classes) == ["Norway Flag", "grinning face", "waving hand sign"]


def test_two_packages_go_in_one_folder_with_their_licences(emoji: Callable[..., Result], tmp_path: Path) -> None:
    """A tarball and a folder that npm installed; a caption stands for the picture of each."""
    folder = tmp_path / "node_modules" / "emoji-datasource-twitter"
    others = {name: picture((10 * number, 9, 8, 255)) for number, name in enumerate(PICTURES)}
    for name, content in package("twitter", pictures=others).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    done = emoji(pack(tmp_path / "google.tgz", package()), folder, "--out", "both")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "desk" / "both"
    assert len(files_below(out / "classes")) == 3 + 4
    lines = [json.loads(line) for line in (out / "captions" / "metadata.jsonl").read_text().splitlines()]
    assert {line["file_name"] for line in lines if line["text"] == "grinning face"} == {
        "google-1f600.png",
        "twitter-1f600.png",
    }
    sources = (out / "SOURCES.txt").read_text()
    for fact in (
        "Apache License 2.0",
        "Creative Commons Attribution 4.0",
        "3 pictures of emoji-datasource-google 16.0.0",
    ):
        assert fact in sources
    assert sources.count("The package's own licence") == 2


@pytest.mark.parametrize("name", ["../evil.txt", "package/../../evil.txt"])
def test_a_member_outside_of_a_tarball_is_refused(name: str, refused: Callable[..., None], tmp_path: Path) -> None:
    refused("outside the destination", pack(tmp_path / "evil.tgz", package(), tarfile.TarInfo(name)))


def test_an_absolute_member_of_a_tarball_is_written_nowhere_else(emoji: Callable[..., Result], tmp_path: Path) -> None:
    evil = tmp_path / "evil.txt"
    assert emoji(pack(tmp_path / "evil.tgz", package(), tarfile.TarInfo(str(evil)))).returncode == 0
    assert not evil.exists()
    assert "evil" not in str(files_below(tmp_path / "desk"))


def test_a_link_out_of_a_tarball_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    link = tarfile.TarInfo("package/img/google/64/1f600.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    refused("cannot be unpacked", pack(tmp_path / "link.tgz", package(), link))


@pytest.mark.parametrize(
    ("files", "fragment"),
    [
        (package("apple"), "expected emoji-datasource-google or emoji-datasource-twitter"),
        (package(entries=[]), "holds no list of emoji"),
        (package(entries=[{"image": "1f600.png"}]), "expected image, name, category, sort_order"),
        (package(entries=[entry("../../../secret.png", "A", "B", 1)]), "expected a code such as 1f600.png"),
        (package(entries=[entry("1f600.png", " ", "B", 1)]), "without a name"),
        (package(entries=[entry("1f600.png", "A", "..", 1)]), "of no category"),
        (package(entries=[entry("1f601.png", "A", "B", 1)]), "1f601.png cannot be read as a picture"),
        (
            package(pictures=PICTURES | {"1f600.png": PICTURES["1f600.png"][:60]}),
            "1f600.png cannot be read as a picture",
        ),
        (package() | {"emoji.json": b"["}, "emoji.json cannot be read as JSON"),
        ({name: content for name, content in package().items() if name != "LICENSE"}, "LICENSE cannot be read"),
        ({}, "package.json cannot be read as JSON"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    files: dict[str, bytes], fragment: str, refused: Callable[..., None], tmp_path: Path
) -> None:
    refused(fragment, pack(tmp_path / "package.tgz", files))


def test_files_that_are_no_tarball_are_named(refused: Callable[..., None], tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.tgz", package())
    (tmp_path / "half.tgz").write_bytes(whole.read_bytes()[:-200])
    refused("half.tgz cannot be unpacked", tmp_path / "half.tgz")
    refused("nowhere.tgz cannot be unpacked", "nowhere.tgz")
    refused("a package is given twice", whole, whole)


def test_nothing_is_overwritten(emoji: Callable[..., Result], refused: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "desk" / "emoji"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    source = pack(tmp_path / "google.tgz", package())
    refused("is there already", source)
    assert files_below(out) == {"mine.txt"}
    (out / "mine.txt").unlink()
    assert emoji(source).returncode == 0  # an empty folder is taken
    assert "SOURCES.txt" in files_below(out)


@pytest.mark.slow
def test_the_recipe_trains_on_the_new_folder(
    emoji: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert emoji(pack(tmp_path / "google.tgz", package())).returncode == 0
    monkeypatch.chdir(tmp_path / "desk")
    small = ("network.width=8", "teacher.updates=2", "distill.stages={}", "distill.chain=[4, 1]", "distill.updates=1")
    settings = [
        word for setting in (*small, "evaluate.samples=8", "evaluate.resamples=2") for word in ("--set", setting)
    ]
    succeeds("run", "emoji", *settings, "--out", "run")
    network = json.loads(Path("run/student-0001/unet/config.json").read_text())
    assert (network["sample_size"], network["in_channels"], network["num_class_embeds"]) == (32, 3, 3)
