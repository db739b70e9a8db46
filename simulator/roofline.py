"""The smooth roofline: what kernels take when arithmetic and memory overlap, and which of the two it is laid to."""

from __future__ import annotations

import numpy as np


def smooth_maximum(compute_s, memory_s, exponent: float):
    """(compute^p + memory^p)^(1/p), elementwise; never below the larger of the two, never above their sum."""
    largest = np.maximum(compute_s, memory_s)
    safe = np.where(largest > 0.0, largest, 1.0)
    return safe * ((compute_s / safe) ** exponent + (memory_s / safe) ** exponent) ** (1.0 / exponent) * (largest > 0.0)


def compute_share(compute_s, memory_s, exponent: float):
    """Share of an operator's time that is laid to compute: c^p / (c^p + m^p); 0 where both are 0."""
    largest = np.maximum(compute_s, memory_s)
    safe = np.where(largest > 0.0, largest, 1.0)
    c, m = (compute_s / safe) ** exponent, (memory_s / safe) ** exponent
    return np.where(largest > 0.0, c / np.where(c + m > 0.0, c + m, 1.0), 0.0)
