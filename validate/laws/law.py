"""What a law is, and what it says of one deployment: the measured value, its bound, and the room between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Numbers = float | Sequence[float] | np.ndarray

AT_MOST, AT_LEAST, EQUAL = "<=", ">=", "="


@dataclass(frozen=True)
class Result:
    """One law on one deployment, at the point where it comes closest to being broken.

    `value` and `bound` in the law's unit. `margin` is relative to the bound, the law's tolerance included: below zero
    the law is broken. `where`: which point that was.
    """

    law: str  # its number
    value: float
    bound: float
    sense: str
    margin: float
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the law holds; a value that is not a number keeps no law."""
        return bool(self.margin >= 0.0)


@dataclass(frozen=True)
class Law:
    """A sentence that the simulator has to keep, whatever it simulates. `tolerance` is relative to the bound."""

    number: str
    name: str
    statement: str
    formula: str
    source: str
    unit: str = ""
    tolerance: float = 1e-9

    def at_most(self, value: Numbers, bound: Numbers, where: Sequence[str] = ()) -> Result:
        """value <= bound at every point; arrays of one shape, `where` names the points."""
        return self._closest(value, bound, AT_MOST, where)

    def at_least(self, value: Numbers, bound: Numbers, where: Sequence[str] = ()) -> Result:
        """value >= bound at every point."""
        return self._closest(value, bound, AT_LEAST, where)

    def equal(self, value: Numbers, bound: Numbers, where: Sequence[str] = ()) -> Result:
        """value = bound at every point."""
        return self._closest(value, bound, EQUAL, where)

    def rising(self, values: Numbers, where: Sequence[str] = ()) -> Result:
        """No value is below the one before it; `where` names all of them."""
        found = np.asarray(values, dtype=float)
        return self.at_least(found[1:], found[:-1], where[1:])

    def _closest(self, value: Numbers, bound: Numbers, sense: str, where: Sequence[str]) -> Result:
        values, bounds = np.broadcast_arrays(np.atleast_1d(np.asarray(value, float)), np.asarray(bound, float))
        away = (values - bounds) / np.where(bounds == 0.0, 1.0, np.abs(bounds))
        room = {AT_MOST: -away, AT_LEAST: away, EQUAL: -np.abs(away)}[sense] + self.tolerance
        worst = int(np.argmin(np.where(np.isnan(room), -np.inf, room)))
        name = where[worst] if len(where) else ""
        return Result(self.number, float(values[worst]), float(bounds[worst]), sense, float(room[worst]), name)


@dataclass(frozen=True)
class Family:
    """Laws of one subject, in the order of their numbers."""

    title: str
    about: str  # what is run, one or two sentences
    laws: tuple[Law, ...]
