"""Colour pictures with names: the emoji of two npm packages as a folder of classes and a folder with captions.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    python benchmarks/tools/emoji.py emoji-datasource-*.tgz --out emoji
    progdist run emoji

A package is given as its tarball, or as the folder that `npm install` made of it, node_modules/emoji-datasource-google;
one of the two will do. The new folder holds

    classes/CLASS/SET-CODE.png    a folder for each category of emoji, for `folder:emoji/classes`
    captions/SET-CODE.png         the same pictures, with metadata.jsonl, for `captions:emoji/captions`
    SOURCES.txt                   who drew them, under which licences, how many there are, and what was left out

and each picture is the package's own file, 64x64 with its transparency. Left out are

- skin tones: the same hands and people in five more colours, 1,875 of a set's 3,786 pictures. With them three pictures
  in five would be of one class, and a caption names no tone. The category Component, five swatches, goes with them.
- pictures that look the same as one before them in Unicode's order, as the flags of Norway and Svalbard do.

Each set draws every emoji in its own style: a class has both, and a caption stands for two pictures.
"""

import argparse
import hashlib
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from progdist._utils.errors import UserError

PREFIX = "emoji-datasource-"
"""What the names of the packages begin with; the name of the set of pictures follows."""

LICENCES = {
    "google": "Noto Emoji (https://github.com/googlefonts/noto-emoji), Copyright Google LLC and contributors.\n"
    "Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0); flags are in the public domain, or otherwise "
    "exempt from copyright.",
    "twitter": "Twemoji (https://github.com/jdecked/twemoji), Copyright Twitter, Inc and other contributors.\n"
    "Creative Commons Attribution 4.0 International (https://creativecommons.org/licenses/by/4.0/).",
}
"""Who drew a set of pictures, and the licence of the pictures; other sets are not free."""

CODE = re.compile(r"[0-9a-f]+(-[0-9a-f]+)*\.png")
"""The file of a picture: the code points of its emoji."""


@dataclass(frozen=True)
class Package:
    """An unpacked npm package with one set of pictures."""

    folder: Path
    artwork: str
    version: str


@dataclass(frozen=True)
class Emoji:
    """One picture: its file, its set, its class's folder, its caption, and a digest of what is seen of it."""

    file: Path
    artwork: str
    category: str
    caption: str
    look: str

    @property
    def name(self) -> str:
        """The file's name in the new folders."""
        return f"{self.artwork}-{self.file.name}"


@contextmanager
def opened(source: Path) -> Iterator[Package]:
    """A package from its tarball, unpacked elsewhere and only while it is used, or from its folder.

    A UserError where it is damaged, another package, or would write outside of the folder that it is unpacked in.
    """
    if source.is_dir():
        yield read_package(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise UserError(
                f"{source} cannot be unpacked ({error}): give a tarball of `npm pack`, or the package's folder"
            ) from error
        yield read_package(Path(folder, "package"))


def read_package(folder: Path) -> Package:
    """What package.json says; a UserError where it is not of a set that is known."""
    about = read_json(folder / "package.json")
    name = about.get("name") if isinstance(about, dict) else None
    expected = " or ".join(PREFIX + artwork for artwork in LICENCES)
    if not isinstance(name, str) or name.removeprefix(PREFIX) not in LICENCES:
        raise UserError(f"{folder} holds the package {str(name)[:100]!r}, expected {expected}")
    return Package(folder, name.removeprefix(PREFIX), str(about.get("version"))[:50])


def read_json(path: Path) -> Any:  # noqa: ANN401  (whatever JSON can hold)
    """The content of a JSON file; a UserError where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): get the package anew") from error


def emoji_of(package: Package) -> Iterator[Emoji]:
    """The emoji of a package in Unicode's order; skin tones are not among them.

    A UserError where emoji.json names none, or a picture that is missing or damaged.
    """
    path = package.folder / "emoji.json"
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} holds no list of emoji: get the package anew")
    for entry in sorted((checked(entry, path) for entry in entries), key=lambda entry: entry["sort_order"]):
        if entry["category"] == "Component":
            continue
        file = package.folder / "img" / package.artwork / "64" / entry["image"]
        yield Emoji(file, package.artwork, class_of(entry["category"]), caption_of(entry["name"]), look_of(file))


def checked(entry: Any, path: Path) -> dict[str, Any]:  # noqa: ANN401  (whatever JSON can hold)
    """An entry of emoji.json with all that is used of it; a UserError where something is missing or no file's name."""
    kinds = {"image": str, "name": str, "category": str, "sort_order": int}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path} has the entry {str(entry)[:100]}, expected {', '.join(kinds)}: get the package anew")
    if not CODE.fullmatch(entry["image"]):
        raise UserError(f"{path} names the picture {entry['image'][:100]!r}, expected a code such as 1f600.png")
    if not entry["name"].strip() or not class_of(entry["category"]):
        raise UserError(f"{path} has {entry['image']} without a name, or of no category: get the package anew")
    return entry


def class_of(category: str) -> str:
    """The folder of a category: people-and-body of People & Body."""
    return "-".join(re.findall("[a-z0-9]+", category.lower().replace("&", "and")))


def caption_of(name: str) -> str:
    """A name of Unicode's, GRINNING FACE, in small letters; the names of flags, Egypt Flag, are as they are."""
    return " ".join((name.lower() if name.isupper() else name).split())


def look_of(file: Path) -> str:
    """A digest of colours times alpha: what transparent pixels hide makes no difference."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return hashlib.sha256(image.convert("RGBA").convert("RGBa").tobytes()).hexdigest()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as a picture ({error}): get the package anew") from error


def write(packages: Sequence[Package], out: Path) -> list[Emoji]:
    """Write the folders and SOURCES.txt, and return what is in them; nothing is seen of `out` before it is complete.

    A UserError where `out` holds something, or cannot be written.
    """
    every = [emoji for package in packages for emoji in emoji_of(package)]
    first = list({emoji.look: emoji for emoji in reversed(every)}.values())[::-1]
    lines = [json.dumps({"file_name": emoji.name, "text": emoji.caption}) + "\n" for emoji in first]
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there already: remove it, or give another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
            new = Path(unfinished, "emoji")
            for emoji in first:
                for folder in (new / "classes" / emoji.category, new / "captions"):
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(emoji.file, folder / emoji.name)
            (new / "captions" / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
            (new / "SOURCES.txt").write_text(sources(packages, every, first), encoding="utf-8")
            new.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}): give another --out") from error
    return first


def sources(packages: Sequence[Package], every: Sequence[Emoji], first: Sequence[Emoji]) -> str:
    """The text of SOURCES.txt."""
    texts = [
        "Pictures of emoji, put together by benchmarks/tools/emoji.py of progdist from npm packages.\n"
        "The files are unchanged but for their names.",
        f"Pictures by class:\n{table(first)}",
    ]
    for package in packages:
        kept, found = (sum(emoji.artwork == package.artwork for emoji in some) for some in (first, every))
        texts.append(
            f"{package.artwork}-*.png: {LICENCES[package.artwork]}\n"
            f"{kept} pictures of {PREFIX}{package.artwork} {package.version}; left out are {found - kept} that look "
            "the same as another, and all skin tones.\n"
            f"Names and categories are the package's, under its own licence:\n\n{licence_of(package)}"
        )
    return "\n\n".join(texts) + "\n"


def licence_of(package: Package) -> str:
    """The package's own licence; a UserError where it is missing."""
    path = package.folder / "LICENSE"
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): get the package anew") from error


def table(emoji: Sequence[Emoji]) -> str:
    """The number of pictures of each class, a line each."""
    counts = Counter(one.category for one in emoji)
    return "\n".join(f"{counts[category]:5} {category}" for category in sorted(counts))


def main() -> None:
    """Write the folder and print how many pictures each class has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+", help="tarballs or folders of the packages")
    parser.add_argument("--out", type=Path, default=Path("emoji"), help="the new folder (emoji)")
    arguments = parser.parse_args()
    try:
        with ExitStack() as stack:
            packages = [stack.enter_context(opened(source)) for source in arguments.packages]
            if len({package.artwork for package in packages}) < len(packages):
                raise UserError("a package is given twice: leave one of them")
            written = write(packages, arguments.out)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{table(written)}\n{len(written):5} pictures in {arguments.out}")


if __name__ == "__main__":
    main()
