"""Options and arguments that no command takes: one line, which says where the help is, and exit code 2."""

import pytest

from support.commands import call, refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill", "model", "--stepz", "3"], "No such option: --stepz"),
        (["distll"], "No such command 'distll'. Did you mean 'distill'?"),
        (["distill", "model", "--data", "digits", "--steps", "0"], "Invalid value for '--steps'"),
        (["run"], "Missing argument 'RECIPE': see"),
        (["--verson"], "No such option: --verson"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str) -> None:
    refused(call(*words), f"progdist: {message}", "--help\n")


def test_no_command_shows_the_help() -> None:
    assert "Commands:" in call().output
