"""The folders of pipelines that several files read."""

from pathlib import Path

import pytest

from support.text import WRITERS
from support.text_transformers import TRANSFORMER_WRITERS


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind with a U-Net, as stock code writes it."""
    return {kind: write(tmp_path_factory.mktemp("pipelines") / kind) for kind, write in WRITERS.items()}


@pytest.fixture(scope="session")
def transformer_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind with a transformer, as stock code writes it."""
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: write(root / kind) for kind, write in TRANSFORMER_WRITERS.items()}
