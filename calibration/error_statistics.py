"""Statistics of the errors of judged predictions. Errors are predicted / measured - 1, as fractions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from calibration.judged import Judged

# Neither time nor energy: their spreads are conventions, so they do not count in the coverage.
NO_INTERVAL = ("mean batch", "KV capacity")


@dataclass(frozen=True)
class Errors:
    """Statistics of relative errors, as fractions."""

    n: int
    bias: float  # mean of predicted / measured - 1
    mape: float  # mean of its size
    median: float
    p90: float


def errors_of(pairs: Iterable[tuple[float | None, float]]) -> Errors | None:
    """Statistics of (predicted, measured) pairs; pairs without a prediction are left out. None if nothing remains."""
    table = np.array([(p, m) for p, m in pairs if p is not None], dtype=float).reshape(-1, 2)
    if not len(table):
        return None
    error = np.sort(table[:, 0] / table[:, 1] - 1.0)  # sorted: the same sums in whatever order the runs come
    size = np.abs(error)
    return Errors(
        len(error), float(error.mean()), float(size.mean()), float(np.median(size)), float(np.percentile(size, 90))
    )


def coverage_of(judged: Iterable[Judged]) -> float | None:
    """Share of measurements inside their 90 % interval; None without any left-out prediction."""
    found = [row.inside for row in judged if row.inside is not None]
    return sum(found) / len(found) if found else None
