"""Errors of a kernel model against measured rows, and how they are summed up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Errors:
    """Relative errors predicted / measured - 1, in the order of the rows."""

    relative: np.ndarray
    counted: np.ndarray  # rows that the model is meant for; the others are only reported

    def summary(self, everything: bool = False) -> dict[str, float]:
        """Number of rows, bias (median), median and 90th percentile of |error|; of counted rows, or of all."""
        return summarise(self.relative if everything else self.relative[self.counted])


def summarise(relative: np.ndarray) -> dict[str, float]:
    """n, bias (median of the errors), median and p90 of their size."""
    size = np.abs(relative)
    return {
        "n": float(len(relative)),
        "bias": float(np.median(relative)),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
    }


def line(summary: Mapping[str, float]) -> str:
    """A summary as text, in percent."""
    return "n={n:.0f} bias {b:.1f} % median {m:.1f} % p90 {p:.1f} %".format(
        n=summary["n"], b=100 * summary["bias"], m=100 * summary["median"], p=100 * summary["p90"]
    )
