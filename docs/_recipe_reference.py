"""The page of all recipe keys, made from the schema when the site is built."""

from collections.abc import Iterator
from typing import Any, get_args

from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from progdist.recipes.files import read_recipe, shipped
from progdist.recipes.recipe import Recipe

HEAD = """# Recipes

A recipe is a YAML file, or the name of one that ships. `--set section.key=value` changes a key on the command line.
Keys that are not known are refused, with the nearest one that is.

| recipe | what it is |
|---|---|
"""


def sections(part: type[BaseModel], name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a recipe with its dotted name."""
    yield name, part
    for key, field in part.model_fields.items():
        inner = [each for outer in get_args(field.annotation) for each in (outer, *get_args(outer))]
        for kind in (field.annotation, *inner):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                where = f"{name}.{key}" if name else key
                yield from sections(kind, f"{where}.N" if key == "stages" else where)


def table(name: str, part: type[BaseModel]) -> str:
    """One section's keys, types and defaults."""
    title, about = f"`{name}`" if name else "At the top", (part.__doc__ or "").strip().replace("\n    ", "\n")
    lines = [f"\n## {title}\n", about, ""]
    lines += ["| key | type | default |", "|---|---|---|"]
    schema: dict[str, Any] = part.model_json_schema()
    for key, field in part.model_fields.items():
        known = schema["properties"].get(key, {})
        kinds = known.get("anyOf", [known])
        words = [", ".join(map(str, each["enum"])) if "enum" in each else each.get("type", "section") for each in kinds]
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        shown = "" if len(default) > 60 else f"`{default}`"
        lines.append(f"| `{key}` | {' or '.join(words)} | {shown} |")
    return "\n".join(lines) + "\n"


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401
    """Add the page."""
    rows = "".join(f"| `{name}` | {read_recipe(name).about} |\n" for name in shipped())
    text = HEAD + rows + "".join(table(name, part) for name, part in sections(Recipe))
    files.append(File.generated(config, "recipes.md", content=text))
    return files
