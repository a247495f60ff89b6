"""Every command says what it does before torch is imported, and which command comes next."""

from pathlib import Path

import pytest
import typer

from progdist._utils.errors import UserError
from progdist.cli import options, terminal
from progdist.cli.app import app
from support.commands import call, refused

INSTANT = {"recipes", "runs"}  # which need no torch at all
FIRST = {
    "run digits": "running digits in runs/digits",
    "run digits --dry-run": "estimating digits",
    "init digits": "reading digits",
    "init my-model --data digits": "opening my-model",
    "distill my-model --data digits": "opening my-model",
    "doctor my-model": "opening my-model",
    "fit my-model": "reading my-model",
    "sample my-model": "opening my-model",
    "evaluate a b --data digits": "reading digits",
    "evaluate a --reference a.npz": "opening a",
    "compare a b": "opening a, b",
    "compare a b --data digits": "reading digits",
    "statistics digits --out a.npz": "reading digits",
    "play a b": "opening a, b",
    "export a --onnx a.onnx": "opening a",
    "export a --lora-format kohya --out a.safetensors": "opening a",
    "report runs/a": "reading runs/a",
    "import-official checkpoint --out a": "reading checkpoint",
}
DATA_ON_STANDARD_OUTPUT = ("sample", "evaluate", "compare", "statistics")


@pytest.mark.parametrize("words", FIRST)
def test_the_first_line_comes_before_torch(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise UserError("torch")

    monkeypatch.setattr(terminal, "prepare_torch", stop)
    monkeypatch.chdir(tmp_path)
    models = [tmp_path / name for name in ("my-model", "a", "b")]
    for model in models:
        model.mkdir()
    result = call(*words.split())
    assert result.exit_code == 2
    said = result.stderr if words.startswith(DATA_ON_STANDARD_OUTPUT) else result.stdout
    assert said.splitlines()[0] == FIRST[words]
    assert result.stderr.splitlines()[-1] == "progdist: torch"
    assert sorted(tmp_path.iterdir()) == sorted(models)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample nowhere", "nowhere is not a folder: it does not exist"),
        ("evaluate nowhere --data digits", "nowhere is not a folder: it does not exist"),
        ("compare digits@4 nowhere@4", "digits@4 is not a folder: it does not exist"),
        ("doctor nowhere", "nowhere is not a folder: it does not exist"),
        ("distill . --data folder:nowhere", "folder:nowhere: nowhere does not exist"),
        ("init folder:nowhere", "folder:nowhere: nowhere does not exist"),
        ("statistics npz:nowhere.npz --out a.npz", "npz:nowhere.npz: nowhere.npz does not exist"),
    ],
)
def test_what_is_missing_is_found_before_torch(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "prepare_torch", lambda: pytest.fail("torch is imported"))
    monkeypatch.chdir(tmp_path)
    refused(call(*words.split()), message)
    assert list(tmp_path.iterdir()) == []


def test_that_is_so_of_every_command() -> None:
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    assert {words.split()[0] for words in FIRST} | INSTANT == set(commands)


def test_a_seed_is_a_setting() -> None:
    assert options.settings(["a=1"], 3) == ["a=1", "seed=3"]
    assert options.settings(None, None) == []
    refused(call("run", "digits", "--seed", 3, "--set", "seed=3"), "--seed and --set seed=... both set the seed")
    refused(call("run", "digits", "--seed", 2**32), "--seed")
