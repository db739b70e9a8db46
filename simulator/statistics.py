"""Quantiles of values that stand for many equal observations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def repeated_quantile(values: np.ndarray, counts: np.ndarray, q: float) -> float:
    """`np.quantile(np.repeat(values, counts), q)` without the repetition."""
    return float(repeated_quantiles(values, counts, (q,))[0])


def repeated_quantiles(values: np.ndarray, counts: np.ndarray, q: Sequence[float]) -> np.ndarray:
    """The same for several `q` (Q,) with one sort; `values` (S,), `counts` (S,): whole numbers, not all zero."""
    order = np.argsort(values, kind="stable")
    ranked, ends = values[order], np.cumsum(counts[order])
    position = np.asarray(q, dtype=float) * (ends[-1] - 1)
    low, high = (ranked[np.searchsorted(ends, x, side="right")] for x in (np.floor(position), np.ceil(position)))
    return low + (high - low) * (position - np.floor(position))
