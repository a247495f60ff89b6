"""Runs in processes of their own."""

import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from progdist.cli.app import start

CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""For processes whose numbers are compared with those of another."""

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")

_PREPARED = multiprocessing.get_context("forkserver")
"""Starts processes from one that has imported everything, so that runs begin at once."""
_PREPARED.set_forkserver_preload(
    [
        "progdist.cli.app",
        "progdist.runs.run",
        "progdist.cli.progress",
        "progdist.runs.pages.report",
        "sklearn.datasets",
        "scipy.linalg",
        "torchmetrics.image.kid",
    ]
)


@dataclass
class RunProcess:
    """A run in a process of its own."""

    process: BaseProcess
    errors: Path
    """What it writes on standard error."""

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def finish(self) -> tuple[int | None, str]:
        """Exit code, and what was written on standard error."""
        self.process.join(1800)
        assert self.process.exitcode is not None, "the run hangs"
        return self.process.exitcode, self.errors.read_text()


def _run(arguments: list[str], errors: Path) -> None:
    os.environ.update(CPU_ENVIRONMENT)
    for stream, number in ((errors.with_suffix(".out"), 1), (errors, 2)):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    start(arguments)


def start_run(recipe: Path, out: Path, *more: str) -> RunProcess:
    """`progdist run` with more arguments."""
    errors = out.with_suffix(f".{random.random()}.err")
    process = _PREPARED.Process(target=_run, args=(["run", str(recipe), "--out", str(out), *more], errors))
    process.start()
    return RunProcess(process, errors)


def count_updates(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def wait_for(process: "RunProcess | subprocess.Popen[str]", ready: Callable[[], bool]) -> None:
    """Until something is true or the process ends."""
    while not ready() and process.poll() is None:
        time.sleep(0.005)
