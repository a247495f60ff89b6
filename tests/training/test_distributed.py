"""Two processes agree on the checkpoint that they continue from."""

from pathlib import Path

import pytest

from support.processes import start_process

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path
import torch
from progdist._utils.errors import UserError
from progdist.training.checkpoint import Checkpoint, Checkpoints
from progdist.training.distributed import join_processes, load_agreed_checkpoint

processes = join_processes()
rank = processes.process_index
for case, saved in {"newer": ([4, 8], [4, 8, 12]), "lacking": ([4, 8], [4])}.items():
    checkpoints = Checkpoints(Path(sys.argv[1]) / case / str(rank), keep=9)
    for update in saved[rank]:
        checkpoints.save(Checkpoint(update, {"a": torch.ones(1)}, {}))
    try:
        checkpoint = load_agreed_checkpoint(checkpoints, processes)
        print(f"{case}: process {rank} continues from {checkpoint.update if checkpoint else None}", flush=True)
    except UserError as error:
        print(f"{case}: process {rank} stops: {error}", flush=True)
torch.distributed.destroy_process_group()
"""


def test_the_first_process_chooses_the_checkpoint(tmp_path: Path) -> None:
    """A newer one of another process is passed over; one that another process lacks stops them all."""
    (tmp_path / "script.py").write_text(SCRIPT)
    script = str(tmp_path / "script.py")
    processes = start_process(script, str(tmp_path), errors=tmp_path / "errors", ranks=2)
    code, errors = processes.finish()
    assert code == 0, errors
    for rank in (0, 1):
        assert f"newer: process {rank} continues from 8" in processes.output
        assert f"lacking: process {rank} stops: process 1: " in processes.output
