"""Evaluation records made up for tests."""

from typing import Any

from progdist.evaluation.record import EvaluationRecord, Quality


def quality(**changes: Any) -> Quality:  # noqa: ANN401
    numbers: dict[str, Any] = {
        "features": "pixels", "samples": 64, "frechet": 41.5, "frechet_low": 40.2, "frechet_high": 42.8,
        "kernel": 1708.2, "kernel_spread": 100.6, "agreement": None, "warning": None, "interval": "bootstrap",
    }  # fmt: skip
    return Quality(**numbers | changes)


def evaluation(model: str, steps: int, **changes: Any) -> EvaluationRecord:  # noqa: ANN401
    numbers: dict[str, Any] = {
        "method": "ddim", "network_evaluations": steps, "seconds_per_image": 0.01, "rmse": 0.1, "quality": (),
    }  # fmt: skip
    return EvaluationRecord(model, steps, **numbers | changes)
