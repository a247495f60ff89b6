"""Runs in processes of their own."""

import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""For processes whose numbers are compared with those of another."""

_PREPARED = multiprocessing.get_context("forkserver")
"""Starts processes from one that has imported everything but the commands, which ask for their rank when imported."""
_PREPARED.set_forkserver_preload(
    [
        "rich.progress",
        "rich.table",
        "typer.testing",
        "progdist.runs.run",
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
    """What it writes on standard error; beside it, with the suffix .out, its output."""

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

    @property
    def output(self) -> str:
        return self.errors.with_suffix(".out").read_text()


def _run(program: str, arguments: list[str]) -> None:
    """`progdist`, or a Python file, with arguments."""
    if program != "progdist":
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")
        return
    from progdist.cli.app import start  # where the rank is known

    start(arguments)


def _launch(program: str, arguments: list[str], ranks: int, errors: Path) -> None:
    os.environ.update(CPU_ENVIRONMENT)
    for stream, number in ((errors.with_suffix(".out"), 1), (errors, 2)):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    if not ranks:
        return _run(program, arguments)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # torchrun's own

    where: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    config = LaunchConfig(1, 1, ranks, start_method="fork", max_restarts=0, monitor_interval=0.1, **where)
    elastic_launch(config, _run)(program, arguments)
    return None


def start_process(program: str, *arguments: str, errors: Path, ranks: int = 0) -> RunProcess:
    """A program by itself, or several of them as torchrun starts them."""
    process = _PREPARED.Process(target=_launch, args=(program, list(arguments), ranks, errors))
    process.start()
    return RunProcess(process, errors)


def start_run(recipe: Path, out: Path, *more: str, ranks: int = 0) -> RunProcess:
    """`progdist run` with more arguments, in one process or in several."""
    errors = out.with_suffix(f".{random.random()}.err")
    return start_process("progdist", "run", str(recipe), "--out", str(out), *more, errors=errors, ranks=ranks)


def count_updates(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def wait_for(process: "RunProcess | subprocess.Popen[str]", ready: Callable[[], bool]) -> None:
    """Until something is true or the process ends."""
    while not ready() and process.poll() is None:
        time.sleep(0.005)
