"""What a stock pipeline is called and under which licence it is, so that its students' cards can say so.

The licence is that of the model card in the pipeline's folder, README.md. It is text that somebody wrote: the fields of
its header are read by a pattern, and what does not look like a licence's identifier, name or address is passed over.
"""

import re
from pathlib import Path

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist.models.model import Base

CARD = "README.md"
CARD_BYTES = 100_000
"""How much of a model card is read."""

FIELDS = {"license": r"[\w.+-]{1,100}", "license_name": r"[\w.+-]{1,100}", "license_link": r"[\w.+:/@%~?=&#-]{1,300}"}
"""The fields of a licence in a card's header, and what their values may be."""


def base_of(source: str, folder: Path, prepared: object = None) -> Base:
    """The pipeline of a folder.

    Args:
        source: the folder as it was named, or hub:OWNER/NAME[@revision].
        folder: where it lies.
        prepared: the name of what the folder was made of, where progdist prepared it.
    """
    name = prepared if isinstance(prepared, str) and prepared else hub_name(source, folder) or folder.resolve().name
    return Base(name[:300], licence(folder))


def hub_name(source: str, folder: Path) -> str | None:
    """`hub:OWNER/NAME` of what was named so, or lies in the cache of the Hugging Face hub; None for any other."""
    if source.startswith("hub:"):
        return source.partition("@")[0]
    owner, separator, name = folder.resolve().parent.parent.name.removeprefix("models--").partition("--")
    cached = folder.resolve().parent.name == "snapshots" and folder.resolve().parent.parent.name.startswith("models--")
    return f"hub:{owner}/{name}" if cached and separator else None


def licence(folder: Path) -> dict[str, str]:
    """`license`, and of one that is `other` its name and link, as far as the card of a folder names them."""
    card = folder / CARD
    try:
        if not card.is_file():
            return {}
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(CARD_BYTES)
    except (OSError, ValueError):
        return {}
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    named = re.findall(r"(?m)^(license(?:_name|_link)?):[ \t]*[\"']?([^\s\"']+)", head[1] if head else "")
    return checked_licence(dict(named))


def checked_licence(fields: object) -> dict[str, str]:
    """The fields of a licence whose values look like such; none without an identifier."""
    given = fields if isinstance(fields, dict) else {}
    found = {
        name: value
        for name, pattern in FIELDS.items()
        if isinstance(value := given.get(name), str) and re.fullmatch(pattern, value)
    }
    return found if "license" in found else {}


def read_base(content: object, where: Path) -> Base | None:
    """The base that a model folder's progdist.json records; a UserError where it is damaged."""
    if content is None:
        return None
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(name, str) or not re.fullmatch(r"[^\x00-\x1f]{1,300}", name):
        raise UserError(f"{where}: base is {str(content)[:50]!r}, expected a name and a licence: restore it")
    return Base(name, checked_licence(content.get("license")))


def prepared_from(record: Path) -> object:
    """The name of what a prepared folder was made of; None where that is not recorded."""
    return read_json(record).get("model") if record.is_file() else None
