"""When requests arrive: arrival processes and the strings that name them on a command line.

Every process starts at t = 0; the first request of a random process comes after a first gap. Times are float arrays
of shape (n,) in seconds, ascending.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from simulator.errors import UserError

SYNTAX = "RATE (requests per second, Poisson), gamma:RATE:BURSTINESS, constant:RATE, piecewise:60x2,60x10 or inf"

MIN_RATE_PER_S, MAX_RATE_PER_S = 1e-9, 1e9  # keeps every time finite and far from the limits of a float
MIN_BURSTINESS, MAX_BURSTINESS = 0.01, 1e6  # below, nearly all requests of a run share one instant


def poisson(rate_per_s: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """n arrivals of a Poisson process of `rate_per_s` requests per second."""
    return np.cumsum(rng.exponential(1.0 / _rate(rate_per_s), size=n))


def gamma(rate_per_s: float, burstiness: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """n arrivals with gamma distributed gaps of mean 1 / rate.

    `burstiness` is the shape of the gamma distribution, as in `vllm bench serve`: the coefficient of variation of a
    gap is burstiness ** -0.5; 1 is a Poisson process, below 1 requests come in clusters, above 1 more evenly.
    """
    shape = _between(burstiness, "burstiness", MIN_BURSTINESS, MAX_BURSTINESS)
    return np.cumsum(rng.gamma(shape, 1.0 / (_rate(rate_per_s) * shape), size=n))


def constant(rate_per_s: float, n: int) -> np.ndarray:
    """n arrivals 1 / rate apart, the first at t = 0."""
    return np.arange(n) / _rate(rate_per_s)


def burst(n: int) -> np.ndarray:
    """n arrivals at t = 0."""
    return np.zeros(n)


def piecewise(pieces: tuple[tuple[float, float], ...], n: int, rng: np.random.Generator) -> np.ndarray:
    """n arrivals of a Poisson process whose rate follows `pieces` ((duration_s, rate_per_s), ...), over and over.

    Exact: arrivals of a process of rate 1 are carried back through the cumulative rate. A piece may have rate 0.
    """
    duration_s, rate_per_s = np.array(_pieces(pieces), dtype=float).T
    start_s = np.cumsum(duration_s) - duration_s
    busy = rate_per_s > 0.0  # nothing arrives in the others, so no arrival needs to be looked up there
    expected = (duration_s * rate_per_s)[busy]
    until = np.cumsum(expected)  # expected arrivals from the start of a cycle to the end of each busy piece
    cycle, within = np.divmod(np.cumsum(rng.exponential(size=n)), until[-1])
    piece = np.minimum(np.searchsorted(until, within, side="right"), len(until) - 1)
    time_s = cycle * duration_s.sum() + start_s[busy][piece]
    time_s += (within - (until - expected)[piece]) / rate_per_s[busy][piece]
    return np.maximum.accumulate(np.maximum(time_s, 0.0))  # rounding at the end of a piece must not turn time back


class Arrivals(ABC):
    """An arrival process. `str(arrivals)` is the text that `parse_arrivals` reads back."""

    @abstractmethod
    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n arrival times in seconds, float array of shape (n,), ascending, >= 0."""

    @abstractmethod
    def phrase(self) -> str:
        """How requests arrive, in words."""


@dataclass(frozen=True)
class Poisson(Arrivals):
    """See `poisson`."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _rate(self.rate_per_s)

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return poisson(self.rate_per_s, n, rng)

    def phrase(self) -> str:
        return f"Poisson arrivals at {self.rate_per_s:.15g}/s"

    def __str__(self) -> str:
        return f"{self.rate_per_s:.15g}"


@dataclass(frozen=True)
class Gamma(Arrivals):
    """See `gamma`."""

    rate_per_s: float
    burstiness: float

    def __post_init__(self) -> None:
        _rate(self.rate_per_s)
        _between(self.burstiness, "burstiness", MIN_BURSTINESS, MAX_BURSTINESS)

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return gamma(self.rate_per_s, self.burstiness, n, rng)

    def phrase(self) -> str:
        return f"gamma arrivals at {self.rate_per_s:.15g}/s with burstiness {self.burstiness:.15g}"

    def __str__(self) -> str:
        return f"gamma:{self.rate_per_s:.15g}:{self.burstiness:.15g}"


@dataclass(frozen=True)
class Constant(Arrivals):
    """See `constant`; consumes no random numbers."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _rate(self.rate_per_s)

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return constant(self.rate_per_s, n)

    def phrase(self) -> str:
        return f"evenly spaced at {self.rate_per_s:.15g}/s"

    def __str__(self) -> str:
        return f"constant:{self.rate_per_s:.15g}"


@dataclass(frozen=True)
class Piecewise(Arrivals):
    """See `piecewise`."""

    pieces: tuple[tuple[float, float], ...]  # (duration_s, rate_per_s)

    def __post_init__(self) -> None:
        _pieces(self.pieces)

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return piecewise(self.pieces, n, rng)

    def phrase(self) -> str:
        return f"arrivals {self}"

    def __str__(self) -> str:
        return "piecewise:" + ",".join(f"{duration:.15g}x{rate:.15g}" for duration, rate in self.pieces)


@dataclass(frozen=True)
class Burst(Arrivals):
    """All requests at t = 0; consumes no random numbers."""

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return burst(n)

    def phrase(self) -> str:
        return "all at once"

    def __str__(self) -> str:
        return "burst"


def parse_arrivals(text: str | float | Arrivals) -> Arrivals:
    """An arrival process from its name: "40", "gamma:40:0.5", "constant:40", "piecewise:60x2,60x10", or "inf"
    or "burst" for all at once.

    Raises `UserError` in one sentence.
    """
    if isinstance(text, Arrivals):
        return text
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return Poisson(float(text))
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"arrivals {text!r}: expected {SYNTAX}")
    text = text.strip()
    kind, _, rest = text.partition(":")
    if text in ("burst", "inf"):  # vLLM's --request-rate inf
        return Burst()
    if kind == "gamma":
        return Gamma(*_numbers(text, rest, ":", 2))
    if kind == "constant":
        return Constant(*_numbers(text, rest, ":", 1))
    if kind == "poisson":
        return Poisson(*_numbers(text, rest, ":", 1))
    if kind == "piecewise":
        return Piecewise(tuple(tuple(_numbers(text, piece, "x", 2)) for piece in rest.split(",")))
    return Poisson(*_numbers(text, text, ":", 1))


def _numbers(text: str, rest: str, separator: str, count: int) -> list[float]:
    """`count` numbers out of `rest`, a part of `text`."""
    fields = rest.split(separator)
    try:
        numbers = [float(part) for part in fields]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        where = "" if rest == text else f": found '{rest}'"
        raise UserError(f"arrivals '{text}'{where}; expected {SYNTAX}")
    return numbers


def _rate(rate_per_s: float) -> float:
    return _between(rate_per_s, "rate in requests per second", MIN_RATE_PER_S, MAX_RATE_PER_S)


def _between(value: float, what: str, low: float, high: float) -> float:
    if not low <= value <= high:  # also refuses NaN
        raise UserError(f"arrivals: the {what} must be a number from {low:g} to {high:g}, got {value:g}")
    return float(value)


def _pieces(pieces: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """`pieces`, after a check that they last and that some of them brings requests."""
    if not pieces:
        raise UserError("arrivals: piecewise needs at least one piece, as 60x2 for 60 s at 2 requests per second")
    for duration_s, rate_per_s in pieces:
        if not (math.isfinite(duration_s) and duration_s > 0.0):
            raise UserError(f"arrivals: the duration of a piece must be above 0 s and finite, got {duration_s:g}")
        if rate_per_s != 0.0:
            _rate(rate_per_s)
    if all(rate_per_s == 0.0 for _, rate_per_s in pieces):
        raise UserError("arrivals: the rate is 0 in every piece, expected at least one piece with requests")
    return pieces
