"""Which of several candidates nobody beats in everything."""

from __future__ import annotations

import numpy as np


def dominators(values: np.ndarray) -> list[tuple[int, ...]]:
    """For every candidate those that are nowhere worse and somewhere better; less is better in every column.

    values (candidates, figures), all finite. Candidates that are equal in everything do not dominate each other.
    """
    values = np.asarray(values, dtype=float)
    nowhere_worse = (values[:, None, :] <= values[None, :, :]).all(axis=2)
    somewhere_better = (values[:, None, :] < values[None, :, :]).any(axis=2)
    return [tuple(np.flatnonzero(column).tolist()) for column in (nowhere_worse & somewhere_better).T]


def front(values: np.ndarray) -> np.ndarray:
    """Which candidates nobody dominates, shape (candidates,), bool; less is better in every column."""
    return np.array([not by for by in dominators(values)], dtype=bool)
