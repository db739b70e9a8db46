"""What kernel models share: how a parameter is described, and what an operator's time consists of."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np


class ParameterSpec(msgspec.Struct, frozen=True):
    """One physical parameter: unit, meaning, the interval outside which it is nonsense, and its prior's spread.

    `log_sd` is the standard deviation of the prior on the parameter's logarithm: how far it is expected to lie from
    the value that a fit starts from. 0 means that it is never fitted.
    """

    unit: str
    meaning: str
    lower: float
    upper: float
    log_sd: float


class OperatorTime(NamedTuple):
    """Seconds of an operator by cause; the three arrays broadcast together and sum to its duration."""

    start_s: np.ndarray  # launch and tail inside a CUDA graph, whatever the size
    compute_s: np.ndarray
    memory_s: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """The operator's duration."""
        return self.start_s + self.compute_s + self.memory_s
