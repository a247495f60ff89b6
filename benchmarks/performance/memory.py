"""Peak memory of the commands, as a function of images, samples and the size of the network.

    python benchmarks/performance/memory.py [--json FILE]

Every case runs in a process of its own, of which the largest resident set is told (getrusage), file-backed pages and
all: the system takes those back when it needs memory. Prints a table in Markdown.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

MIB = 2**20
TRAIN = {"updates": 4, "batch": 16, "learning_rate": 0.001, "precision": "float32"}


def write_arrays(path: Path, images: int) -> str:
    """An npz file of images (images, 32, 32, 3); its source."""
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (images, 32, 32, 3), np.uint8), labels=np.arange(images) % 10)
    return f"npz:{path}"


def write_folder(path: Path, files: int) -> str:
    """A folder of `files` empty files in 1,000 classes but for one image; its source."""
    from PIL import Image

    for number in range(1000):
        (path / f"n{number:08d}").mkdir(parents=True)
    for number in range(files):
        (path / f"n{number % 1000:08d}" / f"n{number % 1000:08d}_{number}.JPEG").touch()
    Image.new("RGB", (32, 32)).save(path / "n00000000" / "n00000000_0.JPEG")
    return f"folder:{path}"


def baseline(scratch: Path, size: int) -> None:
    """What the imports take."""
    import progdist.runs.run  # noqa: F401


def open_arrays(scratch: Path, images: int) -> None:
    """Opening an array source."""
    from progdist.data.sources import load_images

    load_images(f"npz:{scratch}/{images}.npz")


def open_folder(scratch: Path, files: int) -> None:
    """Opening a folder of image files."""
    from progdist.data.sources import load_images

    load_images(f"folder:{scratch}/{files}")


def run(scratch: Path, images: int, samples: int = 128, width: int = 8) -> None:
    """`progdist run`: a teacher of 4 updates, a student of 4, both measured."""
    from progdist.recipes.recipe import Recipe
    from progdist.runs.run import open_run

    class Silent:
        def begin(self, title: str, updates: int) -> None: ...
        def progress(self, progress: object) -> None: ...
        def end(self, stopped: int | None = None) -> None: ...
        def evaluated(self, record: object) -> None: ...
        def note(self, text: str) -> None: ...

    content = {
        "name": "memory",
        "data": {"source": f"npz:{scratch}/{images}.npz"},
        "network": {"width": width, "multipliers": [1, 2], "groups": 4},
        "teacher": TRAIN | {"ema": 0.9},
        "distill": TRAIN | {"start": 2, "end": 1},
        "evaluate": {"samples": samples, "batch": 64, "features": ["pixels"], "resamples": 2, "precision": "float32"},
    }
    recipe = Recipe.model_validate(content)
    open_run(recipe, Path(tempfile.mkdtemp(dir=scratch)) / "run", Silent()).live().run()


def command(*words: object) -> None:
    """One command of progdist, in this process."""
    from progdist.cli.app import start

    try:
        start([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise


def model(scratch: Path, width: int) -> Path:
    """A model folder of untrained weights."""
    from progdist import PARAMETERIZATIONS, Cosine, Denoiser, save
    from progdist.models.unet import unet

    folder = scratch / f"model-{width}"
    if not folder.exists():
        network = unet(image=(3, 32, 32), width=width, multipliers=(1, 2), groups=4)
        save(Denoiser(network, Cosine(), PARAMETERIZATIONS["v"]), folder)
    return folder


def sample(scratch: Path, samples: int, width: int = 8) -> None:
    """`progdist sample` in one step, as an npz file of bytes."""
    command("sample", model(scratch, width), "--steps", 1, "-n", samples, "--out", scratch / f"{samples}-{width}.npz")


def evaluate(scratch: Path, samples: int, images: int = 20_000, width: int = 8) -> None:
    """`progdist evaluate` in one step, in pixels."""
    data = f"npz:{scratch}/{images}.npz"
    command("evaluate", model(scratch, width), "--data", data, "--steps", 1, "-n", samples, "--precision", "float32")


def distill(scratch: Path, width: int, images: int = 5_000) -> None:
    """`progdist distill` from 2 steps to 1: a student of 4 updates of 16 examples."""
    words = ["--steps", 1, "--start", 2, "--updates", 4, "--batch", 16, "--out", scratch / f"distilled-{width}"]
    settings = ("teacher.trust=true", "evaluate.samples=128", "evaluate.resamples=2", "distill.precision=float32")
    options = [word for setting in settings for word in ("--set", setting)]
    command("distill", model(scratch, width), "--data", f"npz:{scratch}/{images}.npz", *words, *options)


CASES: list[tuple[str, str, Callable[..., None], list[dict[str, int]]]] = [
    ("imports alone", "", baseline, [{"size": 0}]),
    ("open `npz:` 32x32x3", "images", open_arrays, [{"images": number} for number in (5_000, 20_000, 60_000)]),
    ("open `folder:`", "files", open_folder, [{"files": number} for number in (1_000, 100_000, 1_200_000)]),
    ("`progdist run`", "images", run, [{"images": number} for number in (5_000, 20_000, 60_000)]),
    ("`progdist run`", "samples", run, [{"images": 5_000, "samples": number} for number in (128, 1024, 8192)]),
    ("`progdist run`", "width", run, [{"images": 5_000, "width": number} for number in (8, 32, 64)]),
    ("`progdist sample`", "samples", sample, [{"samples": number} for number in (256, 2_048, 16_384)]),
    ("`progdist sample`", "width", sample, [{"samples": 256, "width": number} for number in (8, 32, 64)]),
    ("`progdist evaluate`", "samples", evaluate, [{"samples": number, "images": 20_000} for number in (256, 2_048)]),
    ("`progdist distill`", "width", distill, [{"width": number, "images": 5_000} for number in (8, 32, 64)]),
]


def peak(function: Callable[..., None], scratch: Path, given: dict[str, int]) -> float:
    """MiB of the largest resident set of a process that does one case."""
    words = [sys.executable, __file__, "--case", function.__name__, "--scratch", str(scratch), "--given"]
    done = subprocess.run([*words, json.dumps(given)], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def prepare(scratch: Path, given: dict[str, int]) -> None:
    """Write the data of a case, unless they are there."""
    if "images" in given and not (scratch / f"{given['images']}.npz").exists():
        write_arrays(scratch / f"{given['images']}.npz", given["images"])
    if "files" in given and not (scratch / str(given["files"])).exists():
        write_folder(scratch / str(given["files"]), given["files"])


def main() -> None:
    """Print the table, or do one case and print its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="part of a command's name, e.g. sample")
    parser.add_argument("--most", type=int, default=10**9, help="leave out cases of more files, images or samples")
    for name in ("case", "given"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        next(function for _, _, function, _ in CASES if function.__name__ == asked.case)(
            asked.scratch, **json.loads(asked.given)
        )
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB)
        return
    found = []
    print("| command | grows | number | peak MiB |\n| --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, grows, function, cases in CASES:
            for given in (case for case in cases if max(case.values()) <= asked.most and (asked.only or "") in name):
                prepare(Path(folder), given)
                mib = peak(function, Path(folder), given)
                number = f"{given[grows]:,}" if grows else ""
                found.append({"command": name, "grows": grows, **given, "peak_mib": mib})
                print(f"| {name} | {grows} | {number} | {mib:.0f} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
