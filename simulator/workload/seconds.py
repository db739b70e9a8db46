"""How long something lasts that occupies no GPU (a tool, tests, a retriever): distributions of seconds and their names.

Where `simulator.workload.lengths` counts tokens, this counts seconds: real numbers from 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from simulator.errors import UserError
from simulator.workload.lengths import MAX_SIGMA

SYNTAX = "a number of seconds, uniform:LOW:HIGH, lognormal:MEAN:SIGMA or exponential:MEAN"

MAX_S = 1e7  # four months: a wait and what is added to it keep their microseconds in a float


@dataclass(frozen=True)
class Seconds(ABC):
    """A distribution of durations. `str(seconds)` is the text that `parse_seconds` reads back."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            most, unit = (MAX_SIGMA, "") if field.name == "sigma" else (MAX_S, " s")
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0.0 <= value <= most:
                what = f"{self.kind} wait: the {field.name.removesuffix('_s')}"
                raise UserError(f"{what} must be a number from 0 to {most:,.15g}{unit}, got {value}")
            object.__setattr__(self, field.name, float(value))

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        """n durations in seconds, float array of shape (n,), each from 0 to MAX_S."""

    def draw(self, rng: np.random.Generator) -> float:
        """One duration in seconds."""
        return float(self.sample(rng, 1)[0])

    def __str__(self) -> str:
        return ":".join((self.kind, *(_text(getattr(self, field.name)) for field in fields(self))))


@dataclass(frozen=True)
class FixedSeconds(Seconds):
    """Always `length_s` seconds; consumes no random numbers."""

    kind = "fixed"
    length_s: float

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return np.full(n, self.length_s)

    def __str__(self) -> str:
        return _text(self.length_s)


@dataclass(frozen=True)
class UniformSeconds(Seconds):
    """Any duration from `low_s` to `high_s`."""

    kind = "uniform"
    low_s: float
    high_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_s > self.high_s:
            raise UserError(f"uniform wait: the low end {self.low_s:g} s is above the high end {self.high_s:g} s")

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return rng.uniform(self.low_s, self.high_s, size=n)


@dataclass(frozen=True)
class LogNormalSeconds(Seconds):
    """Lognormal with arithmetic mean `mean_s`; `sigma` is the standard deviation of the logarithm, as for lengths."""

    kind = "lognormal"
    mean_s: float
    sigma: float

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        # mean * exp(sigma * z - sigma**2 / 2) has the mean for every sigma, and a mean of 0 is no special case
        factor = rng.lognormal(-(self.sigma**2) / 2.0, self.sigma, size=n)
        return np.minimum(self.mean_s * factor, MAX_S)


@dataclass(frozen=True)
class ExponentialSeconds(Seconds):
    """Exponential with mean `mean_s`: something that may end at any moment, whatever has passed."""

    kind = "exponential"
    mean_s: float

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return np.minimum(rng.exponential(self.mean_s, size=n), MAX_S)


_KINDS = {found.kind: found for found in (FixedSeconds, UniformSeconds, LogNormalSeconds, ExponentialSeconds)}


def parse_seconds(text: str | float | Seconds) -> Seconds:
    """A distribution from its name, as `SYNTAX` says: "1.5", "uniform:0.5:2", "lognormal:3:0.5" or "exponential:2".

    Raises `UserError` in one sentence.
    """
    if isinstance(text, Seconds):
        return text
    if isinstance(text, (int, float, np.number)) and not isinstance(text, bool):
        return FixedSeconds(text)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"wait {text!r}: expected {SYNTAX}")
    text = text.strip()
    kind, colon, rest = text.partition(":")
    found = _KINDS.get(kind) if colon else FixedSeconds
    if found is None:
        raise UserError(f"wait '{text}': expected {SYNTAX}")
    try:
        numbers = [float(part) for part in (rest if colon else text).split(":")]
    except ValueError:
        numbers = []
    if len(numbers) != len(fields(found)):
        names = [field.name.removesuffix("_s").upper() for field in fields(found)]
        expected = f"{':'.join((kind, *names))} with numbers" if colon else SYNTAX
        raise UserError(f"wait '{text}': expected {expected}")
    return found(*numbers)


def _text(number: float) -> str:
    """The shortest text that is read back as this number; whole ones without their '.0'."""
    return repr(number).removesuffix(".0")
