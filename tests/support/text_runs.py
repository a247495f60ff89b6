"""A run of the command on a tiny text-to-image pipeline and a few pairs."""

from pathlib import Path

from support.commands import succeeds

SMALL: list[str] = ["--start", "8", "--updates", "2", "--batch", "8"]
for setting in ("evaluate.samples=16", "evaluate.resamples=2", "teacher.trust=true", "conversion.updates=3"):
    SMALL += ["--set", setting]
for section in ("conversion", "distill", "evaluate"):
    SMALL += ["--set", f"{section}.precision=float32"]


def distilled(place: Path, pairs: Path, *words: object) -> Path:
    out = pairs.parent / "run"
    succeeds("distill", place, "--data", f"captions:{pairs}", "--steps", 4, *SMALL, *words, "--out", out)
    return out
