"""Upload students to the Hugging Face hub, and check their model cards.

An upload requires the user's access token, from `hf auth login` or `$HF_TOKEN`; without one the files are listed.
Everything is uploaded in one commit, or nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from progdist._utils.errors import UserError
from progdist._utils.files import PICKLES, own_files
from progdist.models.model import Model
from progdist.students.card_header import REPOSITORY
from progdist.students.file_card import file_card
from progdist.teachers.base import CARD

LOGIN = "no access token found: run `hf auth login` (or set HF_TOKEN), then the same command"
OFFLINE = "HF_HUB_OFFLINE is set: unset it, then run the same command"


@dataclass(frozen=True)
class Upload:
    """Files to upload, or their contents, by their names in the repository."""

    files: Mapping[str, Path | bytes]

    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes."""
        return {
            name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in self.files.items()
        }

    @property
    def card(self) -> str:
        """Its model card; a UserError if there is none."""
        card = self.files.get(CARD)
        if card is None:
            raise UserError(f"--push requires a folder with a {CARD}, e.g. a student from `progdist distill`")
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
    """A student's folder: all files except hidden ones, pickles and unfinished ones."""
    found = {str(path.relative_to(folder)): path for path in own_files(folder, ".")}
    return Upload(
        {
            name: path
            for name, path in sorted(found.items())
            if not any(part.startswith(".") for part in Path(name).parts) and path.suffix not in PICKLES
        }
    )


def of_files(model: Model, files: Sequence[Path]) -> Upload:
    """Exported files of a student, with a card from the header of the first."""
    named: dict[str, Path | bytes] = {CARD: file_card(model, files).encode()}
    return Upload(named | {path.name: path for path in files})


def lacking(card: str, model: Model | None = None) -> list[str]:
    """A sentence for each missing field of a card's header, and for a base that is only on this machine.

    Raises:
        UserError: the header cannot be read.
    """
    from huggingface_hub import ModelCard

    try:
        data: Any = ModelCard(card).data
    except Exception as error:  # YAML raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the header of {CARD} cannot be read ({reason}): restore it") from error
    notes = []
    if data.license is None:
        notes.append(f"{CARD} names no licence: add `license:` to its header, so that others may use the model")
    elif data.license == "other" and data.license_name is None:
        notes.append(f"{CARD} has `license: other` without a name: add `license_name:` and `license_link:`")
    if data.base_model is None:
        notes.append(f"{CARD} names no base model: add `base_model: OWNER/NAME` if the teacher is on the hub")
    if model and model.lora and not model.lora.base.startswith("hub:"):
        notes.append(
            f"the base is a path on this machine, {model.lora.base}, in {CARD} and progdist.json of a LoRA "
            "student and in the header of its file: distil from hub:OWNER/NAME, or edit it there"
        )
    return notes


def why_dry() -> str:
    """Why nothing can be uploaded, with the remedy; "" if it can."""
    from huggingface_hub import constants, get_token

    return OFFLINE if constants.HF_HUB_OFFLINE else LOGIN if get_token() is None else ""


def push(upload: Upload, repository: str, *, private: bool = False) -> str:
    """Upload to a repository, created if missing; returns the address of the commit.

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
    except Exception as error:  # the library raises many kinds; all mean that the upload failed
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{repository} was not uploaded ({reason}): check the name and the token's write permission"
        ) from cast(BaseException, error)
