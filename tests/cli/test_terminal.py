"""Whatever reads the output: paths are printed as they are; odd pipes, terminals and variables end nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.table import Table
from typer.testing import CliRunner

from progdist._utils.signals import RESUME, Interrupted, resumable
from progdist.cli import terminal
from progdist.cli.terminal import LAUNCHED, WITHOUT_TERMINAL, print_table, rank_of, user_errors
from support.commands import call, refused, succeeds
from support.damaged_files import records


def program(command: object) -> typer.Typer:
    """A program of one command, as ours are."""
    app = typer.Typer()
    app.command()(user_errors(command))  # pyright: ignore[reportArgumentType]
    return app


@pytest.mark.parametrize("name", ["a[bold]b", "[/x]", "[red]", ":cat:", "[link=x]y[/link]"])
def test_paths_are_no_markup(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name.replace("/", "")
    folder.mkdir()
    records(folder)
    assert succeeds("report", folder).output.splitlines() == [f"reading {folder}", f"Report: {folder}/report.html"]
    refused(call("report", f"{tmp_path}/no{name}"), f"{tmp_path}/no{name}")


def test_a_line_is_one_line_where_there_is_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / ("long " * 40).strip() / "run"
    folder.mkdir(parents=True)
    records(folder)
    assert succeeds("report", folder).output.splitlines() == [f"reading {folder}", f"Report: {folder}/report.html"]


def test_a_table_is_not_cut_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table, word = Table("[a]", ":cat:"), "x" * (WITHOUT_TERMINAL // 2)
    table.add_row(word, "[/y]")
    print_table(table)
    told = capsys.readouterr().out
    assert all(each in told for each in (word, "[a]", ":cat:", "[/y]"))


SCRIPT = """
import sys
from progdist.cli import app
app.shipped = lambda: dict.fromkeys(("digits", "Fr\\u00e9chet"), "about: \\u0416 " + "long " * 30)
app.start(["recipes"])
"""


def told(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    with process.stderr as stream:
        return stream.read().decode()


def in_a_process(reads: bool = True, **environment: str) -> tuple[int, str, str]:
    """Exit code and what was said by the list of two recipes, with a reader or with one that has gone."""
    there, back = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **environment}, stdout=back, stderr=subprocess.PIPE
    )
    os.close(back)
    if not reads:
        os.close(there)
        there = os.open(os.devnull, os.O_RDONLY)
    with os.fdopen(there, encoding="ascii") as said:
        return process.wait(), said.read(), told(process)


@pytest.mark.slow
def test_output_that_nobody_reads_ends_without_a_word() -> None:
    assert in_a_process(reads=False) == (1, "", "")


@pytest.mark.slow
def test_a_terminal_of_ascii_and_of_no_columns() -> None:
    code, said, problem = in_a_process(PYTHONIOENCODING="ascii", COLUMNS="0", LINES="x")
    assert (code, problem) == (0, "")
    lines = [line.rstrip() for line in said.splitlines()]
    assert lines[:-1] == ["digits   ? " + ("long " * 30).rstrip(), "Fr?chet  ? " + ("long " * 30).rstrip()]


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0), ({"RANK": ""}, 0), ({"RANK": "x", "WORLD_SIZE": "2"}, 0), ({"RANK": "3"}, 0),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 3), ({"RANK": "1", "WORLD_SIZE": ""}, 0),
        ({"RANK": "-1", "WORLD_SIZE": "1"}, 0),
    ],
)  # fmt: skip
def test_the_rank_is_that_of_a_launcher(environment: dict[str, str], rank: int) -> None:
    assert rank_of(environment) == rank


def test_a_place_among_processes_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.setenv(name, "")
    succeeds("recipes", "digits")
    for name, value in (("RANK", "first"), ("WORLD_SIZE", "2.5"), ("LOCAL_RANK", "½")):
        monkeypatch.setenv(name, value)
        refused(call("recipes", "digits"), f"the variable {name} is '{value}', expected a whole number: unset it")
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused(call("recipes", "digits"), "LOCAL_RANK requires WORLD_SIZE")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample", "m", "-n", "1" + 400 * "0"), "-n"),
        (("sample", "m", "-n", "9" * 5000), "-n"),
        (("sample", "m", "--columns", "1" + 400 * "0"), "--columns"),
        (("sample", "m", "--batch", "1" + 400 * "0"), "--batch is 1"),
        (("sample", "m", "--seed", "9" * 400), "--seed is 9"),
        (("sample", "m", "--guidance", "1e999"), "--guidance is inf, expected a finite number"),
        (("sample", "m", "--variance", "nan"), "--variance"),
        (("run", "digits", "--dry-run", "--device-memory", "1e999"), "--device-memory is inf"),
        (("play", "m", "--port", "9" * 400), "--port"),
        (("distill", "m", "--data", "digits", "--guidance", "1:1e999"), "m"),
        (("run", "digits", "--set", "teacher.updates=" + "9" * 100_000), "not YAML"),
    ],
)
def test_numbers_beyond_all_use_are_one_short_line(words: tuple[str, ...], message: str) -> None:
    result = call(*words)
    refused(result, message)
    assert len(result.stderr) < 2500


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory (no details): use a smaller batch"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] can't allocate memory: you tried\nmore"), "out of memory ("),
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device: free some space\n"),
    ],
)
def test_what_the_machine_has_no_room_for(error: Exception, said: str) -> None:
    def command() -> None:
        raise error

    refused(CliRunner().invoke(program(command), []), said)


def test_only_what_is_kept_is_promised() -> None:
    def stopped() -> None:
        raise Interrupted(2)

    def kept() -> None:
        with resumable():
            stopped()

    def full() -> None:
        with resumable():
            raise OSError(28, "No space left on device", "a/b")

    result = CliRunner().invoke(program(stopped), [])
    assert (result.exit_code, result.stderr) == (130, "progdist: stopped by SIGINT.\n")
    result = CliRunner().invoke(program(kept), [])
    assert (result.exit_code, result.stderr) == (130, f"progdist: stopped by SIGINT. {RESUME}\n")
    refused(CliRunner().invoke(program(full), []), f"a/b: No space left on device: free some space. {RESUME}\n")


def test_another_error_is_told_as_it_is() -> None:
    def command() -> None:
        raise RuntimeError("a defect of ours")

    assert isinstance(CliRunner().invoke(program(command), []).exception, RuntimeError)
    assert terminal.RANK == 0
