"""The notebooks of examples/notebooks as pages, made when the site is built from what stands in them."""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def fenced(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def shown(outputs: list[dict[str, Any]], stem: str) -> tuple[list[str], dict[str, bytes]]:
    """What a cell printed and drew as Markdown, and its pictures by names that begin with `stem`."""
    parts, pictures, printed = [], {}, ""
    for output in outputs:
        picture = output.get("data", {}).get("image/png")
        printed += "".join(output.get("text", "" if picture else output.get("data", {}).get("text/plain", "")))
        if picture:
            name = f"{stem}-{len(pictures)}.png"
            pictures[name] = base64.b64decode(picture)
            parts.append(f"![What the cell above draws]({name})")
    return [fenced(printed, "text")] * bool(printed) + parts, pictures


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their names."""
    parts, pictures = [], {}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        text, drawn = shown(cell["outputs"], f"{path.stem}-{number}")
        parts += [fenced(source, "bash" if source.startswith("%%bash") else "python"), *text]
        pictures |= drawn
    parts.append(f"*This page is the notebook `examples/notebooks/{path.name}`.*")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401
    """Add the pages and their pictures."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        text, pictures = page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files
