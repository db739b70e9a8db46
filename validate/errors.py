"""Error statistics: bias, median, mean and 90th percentile of |predicted / measured - 1|, per group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np

from validate.predict import Prediction


@dataclass(frozen=True)
class ErrorLine:
    """Errors of one group of runs in one metric, as fractions (0.05 = 5 %)."""

    group: str
    metric: str
    n: int
    bias: float  # mean of predicted / measured - 1
    median: float
    mean: float
    p90: float
    covered: float  # share of measured values inside the stated 90 % interval

    def to_dict(self) -> dict[str, float | int | str]:
        """Plain types."""
        return asdict(self)


def error_line(group: str, metric: str, rows: Iterable[tuple[float, float, float, float]]) -> ErrorLine:
    """Statistics of (measured, predicted, low, high) rows; at least one row."""
    table = np.array(list(rows), dtype=float)
    measured, predicted, low, high = table.T
    error = predicted / measured - 1.0
    size = np.abs(error)
    return ErrorLine(
        group=group,
        metric=metric,
        n=len(table),
        bias=float(error.mean()),
        median=float(np.median(size)),
        mean=float(size.mean()),
        p90=float(np.percentile(size, 90)),
        covered=float(((low <= measured) & (measured <= high)).mean()),
    )


def _repeats_ttft(prediction: Prediction, metric: str) -> bool:
    """One-token runs whose end-to-end time was copied from TTFT: one measurement, judged once."""
    return metric.startswith("e2e") and prediction.record.output_tok == 1 and "ttft_s_mean" in prediction.values


def error_lines(
    predictions: Iterable[Prediction],
    group_of: Callable[[Prediction, str], str],
    keep: Callable[[Prediction, str], bool] = lambda prediction, metric: True,
) -> list[ErrorLine]:
    """One line per (group, metric) of the figures that `keep` lets pass, in order of first appearance."""
    rows: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for prediction in predictions:
        measured = prediction.record.measured()
        for metric, (value, low, high) in prediction.values.items():
            if _repeats_ttft(prediction, metric) or not keep(prediction, metric):
                continue
            rows.setdefault((group_of(prediction, metric), metric), []).append((measured[metric], value, low, high))
    return [error_line(group, metric, found) for (group, metric), found in rows.items()]
