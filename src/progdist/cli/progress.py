"""The progress of a run: a live bar in a terminal, plain lines elsewhere."""

import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from progdist._utils.words import counted, interval, significant, supported
from progdist.training import callbacks

if TYPE_CHECKING:  # slow imports
    from progdist.evaluation.record import EvaluationRecord, Quality
    from progdist.runs.estimate.cost import Estimate

PLAIN_EVERY = 15.0  # seconds between lines without a terminal

SMOOTHING = 0.98  # of the loss


class Terminal:
    """Shows rate, loss and time left of every training, and each evaluation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.title, self.updates = "", 0
        self.shown = self.started = 0.0
        self.loss: float | None = None
        self.first: int | None = None

    def begin(self, title: str, updates: int) -> None:
        """Start the bar of one network's training."""
        self.title, self.updates, self.loss, self.first = title, updates, None, None
        self.shown = self.started = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description:13}"), BarColumn(bar_width=18), TaskProgressColumn(),
                TextColumn("{task.fields[status]}"), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task(title, total=updates, status="")

    def progress(self, progress: callbacks.Progress) -> None:
        """Show one update."""
        if progress.finite:
            self.loss = progress.loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * progress.loss
        self.first = progress.update - 1 if self.first is None else self.first
        now = time.monotonic()
        rate = (progress.update - self.first) / max(now - self.started, 1e-3)
        status = f"{rate:5.1f}/s" + ("" if self.loss is None else f"  loss {self.loss:.4f}")
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=progress.update, status=status)
        elif now - self.shown > PLAIN_EVERY:
            self.shown = now
            left = (self.updates - progress.update) / rate
            self.note(f"{self.title}: update {progress.update} of {self.updates}  {status}  {left:.0f} s left")

    def end(self, stopped: int | None = None) -> None:
        """Replace the bar by one line."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if stopped is not None:
            self.note(f"{self.title}: stopped at update {stopped} of {self.updates}")
        elif self.loss is not None:
            seconds = time.monotonic() - self.started
            self.note(f"{self.title}: trained in {seconds:.0f} s, loss {self.loss:.4f}")

    def evaluated(self, record: "EvaluationRecord") -> None:
        """Print one line per measurement."""
        quality, steps = record.quality[0], counted(record.steps, "step")
        ends = (quality.frechet_low, quality.frechet_high)
        line = Text(f"  {record.model.replace('_', ' by ')} at {steps}: Fréchet {supported(quality.frechet, *ends)} ")
        line.append(f"({interval(*ends, ' to ')})", style="dim")
        self.console.print(line.append(f", RMSE {significant(record.rmse)}" if record.rmse else ""))

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def quality_table(records: "Sequence[EvaluationRecord]", against: str = "the data") -> Table:
    """A run's results in the first feature space, in 80 columns; `against` names what samples are compared with."""
    from progdist.runs.pages.report import quality_rows, ratios

    rows, first = quality_rows(records), records[0].quality[0]
    by_teacher = ratios(rows)
    title = f"Fréchet distance to {against} ({first.samples} samples, {first.features} features)"
    table = Table(title=title, title_justify="left")
    for heading in ("steps", "teacher,\nDDIM", "student", "95 %", "ratio", "RMSE", "ms/image"):
        table.add_column(heading, justify="right", no_wrap=True)

    def distance(quality: "Quality") -> str:
        return supported(quality.frechet, quality.frechet_low, quality.frechet_high)

    for steps, row in rows.items():
        teacher, student = row.get("teacher"), row.get("student")
        shown, quality = student or row["teacher"], student.quality[0] if student else None
        table.add_row(
            str(steps),
            distance(teacher.quality[0]) if teacher else "",
            distance(quality) if quality else "",
            interval(quality.frechet_low, quality.frechet_high) if quality else "",
            by_teacher.get(steps, "") if quality else "",
            significant(shown.rmse) if shown.rmse else "",
            significant(1000 * shown.seconds_per_image),
        )
    return table


def estimate_table(name: str, estimated: "Estimate") -> tuple[str, Table]:
    """The estimate of a run, in 80 columns."""
    from progdist.runs.pages.progress import duration

    channels, height, width = estimated.image
    classes = f", {counted(estimated.classes, 'class')}" if estimated.classes else ""
    rates = estimated.rates
    head = f"{name}: images of {channels}x{height}x{width}{classes}; {estimated.parameters:,} parameters."
    timing = f"Not timed on {estimated.device}: it does not fit."
    if rates:
        timing = (
            f"Measured on {estimated.device}: {significant(1000 * rates.evaluation, 3)} ms per evaluation, "
            f"{significant(1000 * rates.training, 3)} ms per training pass, for one image."
        )
    table = Table(title="Network evaluations", title_justify="left")
    for heading in ("", "updates", "batch", "frozen", "trained", "time"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for part in estimated.parts:
        counts = (part.updates, part.batch, part.frozen_evaluations, part.trained_evaluations)
        took = "" if part.hours is None else duration(3600 * part.hours)
        table.add_row(part.name, *(f"{count:,}" if count else "" for count in counts), took)
    whole = 3600 * sum(part.hours or 0 for part in estimated.parts)
    table.add_row("all", "", "", "", "", duration(whole) if rates else "")
    return "\n".join([head, _memory(estimated), *textwrap.wrap(timing, 80)]), table


def _memory(estimated: "Estimate") -> str:
    """Peak memory of the largest training, in lines of 80 columns, and whether it fits."""
    memory = estimated.memory
    parts = [f"{name} {_gib(size)}" for name, size in asdict(memory).items() if size]
    fits = memory.total <= estimated.capacity
    lines = [
        f"Memory while {estimated.heaviest} trains, GiB: {', '.join(parts)}",
        f"Total {_gib(memory.total)} GiB: {'fits' if fits else 'does not fit'} in {_gib(estimated.capacity)} GiB.",
    ]
    if not fits:
        lines.append(
            "To reduce it: gradient_accumulation_steps, gradient_checkpointing, adamw8bit, lora_rank, --lora and its "
            "--base-bits."
        )
    return "\n".join(line for text in lines for line in textwrap.wrap(text, 80))


def _gib(size: float) -> str:
    """Bytes in GiB, with two digits below 1 GiB."""
    return f"{size / 2**30:.1f}" if size >= 2**30 else f"{size / 2**30:.2g}"
