"""A run as seen in the terminal: a live bar where there is one, plain lines elsewhere."""

import textwrap
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from progdist.training import callbacks
from progdist.training.callbacks import Record

if TYPE_CHECKING:  # a slow import, needed by --dry-run alone
    from progdist.runs.estimate.cost import Estimate

PLAIN_EVERY = 15.0
"""Seconds between lines where there is no terminal."""

SMOOTHING = 0.98


class Terminal:
    """Shows rate, loss and time left of every training, and each evaluation as it comes."""

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
            self.bar = Progress(
                TextColumn("{task.description:13}"),
                BarColumn(bar_width=18),
                TaskProgressColumn(),
                TextColumn("{task.fields[says]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.bar.add_task(title, total=updates, says="")

    def progress(self, progress: callbacks.Progress) -> None:
        """Show one update."""
        if progress.finite:
            self.loss = progress.loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * progress.loss
        self.first = progress.update - 1 if self.first is None else self.first
        now = time.monotonic()
        rate = (progress.update - self.first) / max(now - self.started, 1e-3)
        says = f"{rate:5.1f}/s" + ("" if self.loss is None else f"  loss {self.loss:.4f}")
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=progress.update, says=says)
        elif now - self.shown > PLAIN_EVERY:
            self.shown = now
            left = (self.updates - progress.update) / rate
            self.console.print(f"{self.title}: update {progress.update} of {self.updates}  {says}  {left:.0f} s left")

    def end(self) -> None:
        """Take the bar away and leave one line."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if self.loss is not None:
            seconds = time.monotonic() - self.started
            self.console.print(f"{self.title}: trained in {seconds:.0f} s, loss {self.loss:.4f}", highlight=False)

    def evaluated(self, record: Record) -> None:
        """One line for each measurement."""
        quality = record["quality"][0]
        steps = f"{record['steps']} step{'s' if record['steps'] > 1 else ''}"
        self.console.print(
            f"  {record['model'].replace('_', ' by ')} at {steps}: Fréchet {quality['frechet']:.3f} "
            f"[dim]({quality['frechet_low']:.3f} to {quality['frechet_high']:.3f})[/dim], RMSE {record['rmse']:.3f}",
            highlight=False,
        )

    def note(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False)


def quality_table(rows: list[dict[str, Any]], features: str, samples: int) -> Table:
    """The run's numbers in 80 columns: rows as `report.quality_rows` gives them."""
    table = Table(title=f"Fréchet distance to the data ({samples} samples, {features} features)", title_justify="left")
    for heading in ("steps", "teacher DDIM", "student", "95 %", "ratio", "RMSE", "ms/image"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        teacher, student = row.get("teacher"), row.get("student")
        shown = student or row["teacher"]
        table.add_row(
            str(row["steps"]),
            f"{teacher['frechet']:.3f}" if teacher else "",
            f"{student['frechet']:.3f}" if student else "",
            f"{student['frechet_low']:.3f}–{student['frechet_high']:.3f}" if student else "",
            f"{student['ratio']:.2f}" if student else "",
            f"{shown['rmse']:.3f}",
            f"{1000 * shown['seconds_per_image']:.2f}",
        )
    return table


def estimate_table(name: str, estimated: "Estimate") -> tuple[str, Table]:
    """A run estimated, in 80 columns."""
    channels, height, width = estimated.image
    classes = f", {estimated.classes} classes" if estimated.classes else ""
    rates = estimated.rates
    head = (
        f"{name}: images of {channels}x{height}x{width}{classes}; {estimated.parameters:,} parameters.\n"
        f"{_memory(estimated)}\n"
    )
    head += (
        f"Measured on {estimated.device}: {1000 * rates.evaluation:.3g} ms an evaluation, "
        f"{1000 * rates.training:.3g} ms a training pass, per image."
        if rates
        else f"Not timed on {estimated.device}, where it does not fit."
    )
    table = Table(title="Network evaluations", title_justify="left")
    for heading in ("", "updates", "batch", "frozen", "trained", "time"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for part in estimated.parts:
        counts = (part.updates, part.batch, part.frozen_evaluations, part.trained_evaluations)
        table.add_row(part.name, *(f"{count:,}" if count else "" for count in counts), _duration(part.hours))
    table.add_row("all", "", "", "", "", _duration(sum(part.hours or 0 for part in estimated.parts) if rates else None))
    return head, table


def _memory(estimated: "Estimate") -> str:
    """What the heaviest training holds, in lines of 80 columns, and whether that fits."""
    memory = estimated.memory
    parts = [f"{name} {_gib(size)}" for name, size in asdict(memory).items() if size]
    fits = memory.total <= estimated.capacity
    told = [
        f"Memory while {estimated.heaviest} trains, GiB: {', '.join(parts)}",
        f"Together {_gib(memory.total)} GiB: {'fits' if fits else 'does not fit'} in {_gib(estimated.capacity)} GiB.",
    ]
    if not fits:
        told.append("Less: gradient_accumulation_steps, gradient_checkpointing, adamw8bit, lora_rank or --lora.")
    return "\n".join(line for text in told for line in textwrap.wrap(text, 80))


def _gib(size: float) -> str:
    """Bytes in GiB, to two digits where they are few."""
    return f"{size / 2**30:.1f}" if size >= 2**30 else f"{size / 2**30:.2g}"


def _duration(hours: float | None) -> str:
    """For people: 40 s, 7 min, 3.2 h, 12,000 h; nothing where it is not known."""
    if hours is None:
        return ""
    if hours < 1:
        return f"{3600 * hours:.0f} s" if hours < 1 / 60 else f"{60 * hours:.0f} min"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
