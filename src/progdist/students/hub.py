"""Students on the Hugging Face hub: what is uploaded, and what its model card lacks.

Nothing is uploaded without an access token of the person's own, which `hf auth login` or `$HF_TOKEN` gives; until then
what would be is told. Everything arrives in one commit, or nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from progdist._utils.errors import UserError
from progdist._utils.files import own_files
from progdist.models.model import Model
from progdist.models.safe_loading import PICKLES
from progdist.students.card_header import REPOSITORY
from progdist.students.file_card import file_card
from progdist.teachers.base import CARD

LOGIN = "no access token is known here: run `hf auth login` (or set HF_TOKEN) and give the same command again"
OFFLINE = "HF_HUB_OFFLINE is set: unset it and give the same command again"


@dataclass(frozen=True)
class Upload:
    """What is to be uploaded: files, or their contents, by their names in the repository."""

    files: Mapping[str, Path | bytes]

    def sizes(self) -> dict[str, int]:
        """The bytes of each file."""
        return {
            name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in self.files.items()
        }

    @property
    def card(self) -> str:
        """Its model card; a UserError where there is none."""
        card = self.files.get(CARD)
        if card is None:
            raise UserError(f"--push requires a folder with a {CARD}, which `progdist distill` writes: give a student")
        return (card if isinstance(card, bytes) else card.read_bytes()).decode(errors="replace")


def check_repository(name: str) -> None:
    """Refuse a word that cannot be the name of a repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"--push is {name[:100]!r}, expected OWNER/NAME ({' '.join(str(error).split())[:200]})"
        ) from error
    if not re.fullmatch(REPOSITORY, name):
        raise UserError(f"--push is {name[:100]!r}, expected OWNER/NAME")


def of_folder(folder: Path) -> Upload:
    """A student's folder: every file in it but hidden ones, pickles and unfinished ones."""
    found = {str(path.relative_to(folder)): path for path in own_files(folder, ".")}
    return Upload(
        {
            name: path
            for name, path in sorted(found.items())
            if not any(part.startswith(".") for part in Path(name).parts)
            and not any(path.match(each) for each in PICKLES)
        }
    )


def of_files(model: Model, files: Sequence[Path]) -> Upload:
    """Exported files of a student with a card of their own; what the first says of itself is in the card."""
    named: dict[str, Path | bytes] = {CARD: file_card(model, files).encode()}
    return Upload(named | {path.name: path for path in files})


def lacking(card: str, model: Model | None = None) -> list[str]:
    """What a card's header lacks, and what of its model is not for others, a sentence each.

    Raises:
        UserError: the header cannot be read.
    """
    from huggingface_hub import ModelCard

    try:
        data: Any = ModelCard(card).data
    except Exception as error:  # of its YAML, of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the header of {CARD} cannot be read ({reason}): restore it") from error
    notes = []
    if data.license is None:
        notes.append(f"{CARD} names no licence: add `license:` to its header, or others may not use the model")
    elif data.license == "other" and data.license_name is None:
        notes.append(f"{CARD} has `license: other` without a name: add `license_name:` and `license_link:`")
    if data.base_model is None:
        notes.append(f"{CARD} names no base model: add `base_model: OWNER/NAME` if it was made from one on the hub")
    if model and model.lora and not model.lora.base.startswith("hub:"):
        notes.append(
            f"the base is named by its place on this machine, {model.lora.base}, in {CARD} and progdist.json of a LoRA "
            "student and in the header of its file: distil from hub:OWNER/NAME, or write its name there"
        )
    return notes


def why_dry() -> str:
    """Why nothing can be uploaded, and the next step; "" where it can."""
    from huggingface_hub import constants, get_token

    return OFFLINE if constants.HF_HUB_OFFLINE else LOGIN if get_token() is None else ""


def push(upload: Upload, repository: str, *, private: bool = False) -> str:
    """Upload to a repository, which is created where it is not there; returns the address of the commit.

    Raises:
        UserError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        added = [
            CommitOperationAdd(name, each if isinstance(each, bytes) else str(each))
            for name, each in upload.files.items()
        ]
        return str(api.create_commit(repository, added, commit_message="A student of progdist").commit_url)
    except Exception as error:  # the library raises many kinds: all mean that it did not arrive
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{repository} was not uploaded ({reason}): check the name, and that the token may write there"
        ) from cast(BaseException, error)
