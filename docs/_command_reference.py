"""The page of all commands, made from the command line itself when the site is built."""

from functools import cache
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from progdist.cli.app import app

HEAD = """# All commands

`progdist COMMAND --help` says the same in a terminal, `progdist --install-completion` completes commands and options in
your shell, and `python -m progdist` works if the program is not on the path. Errors are one line, with exit code 2.

"""
GROUPS = {
    "Make a few-step model": ("init", "run", "distill", "doctor", "fit"),
    "Use and judge it": ("sample", "play", "evaluate", "statistics", "compare", "runs", "report", "export"),
    "What ships": ("recipes", "import-official"),
}


@cache
def commands() -> dict[str, Any]:
    """Every command by its name."""
    return typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def grouped() -> dict[str, list[str]]:
    """The commands under headings; those that are in no group come last."""
    named = {name for group in GROUPS.values() for name in group}
    known = {title: [name for name in group if name in commands()] for title, group in GROUPS.items()}
    return known | ({"More": rest} if (rest := [name for name in commands() if name not in named]) else {})


def is_option(parameter: Any) -> bool:  # noqa: ANN401
    """Whether it is an option that a page should show."""
    return parameter.param_type_name == "option" and not parameter.hidden and parameter.name != "help"


def synopsis(name: str) -> str:
    """A command with what it cannot do without, e.g. `distill MODEL --data STR`."""
    words = [name]
    for parameter in commands()[name].params:
        if parameter.param_type_name == "argument":
            word = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
            words.append(word if parameter.required else f"[{word}]")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {parameter.name.upper()}")
    return " ".join(words)


def first_sentence(name: str) -> str:
    """What a command does, in short."""
    return " ".join(commands()[name].help.split()).split(". ")[0].rstrip(".")


def cheat_sheet() -> str:
    """Every command on a line, under its heading."""
    lines = ["| `progdist` | |", "|---|---|"]
    for title, names in grouped().items():
        lines.append(f"| **{title}** | |")
        lines += [f"| [`{synopsis(name)}`](#{name}) | {first_sentence(name)} |" for name in names]
    return "\n".join(lines) + "\n"


def section(name: str) -> str:
    """One command whole: what it does, its arguments and its options with their defaults."""
    lines = [f"\n## {name}\n", " ".join(commands()[name].help.split()), ""]
    for parameter in commands()[name].params:
        if parameter.param_type_name == "argument":
            lines += [f"`{parameter.name.upper()}`: {parameter.help or ''}", ""]
    options = [parameter for parameter in commands()[name].params if is_option(parameter)]
    lines += ["| option | default | |", "|---|---|---|"] if options else []
    for option in options:
        given = option.default is not None and option.default is not False
        default = "required" if option.required else f"`{option.default}`" if given else ""
        lines.append(f"| {', '.join(f'`{each}`' for each in option.opts)} | {default} | {option.help or ''} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    return HEAD + cheat_sheet() + "".join(section(name) for names in grouped().values() for name in names)


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401
    """Add the page."""
    files.append(File.generated(config, "commands.md", content=page()))
    return files
