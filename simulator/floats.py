"""Formulas that are written for arrays, run on plain floats: the same source code with other elementary functions.

A numpy call on one number takes as long as on a hundred. A simulation with traffic asks for one step at a time, so the
kernel models exist twice: as they are written, and rebuilt here with `Floats` in the place of numpy. There is one
formula, and both agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any


class Floats:
    """numpy's elementwise functions, as far as the formulas need them, on one number."""

    maximum = staticmethod(max)
    minimum = staticmethod(min)
    ceil = staticmethod(math.ceil)
    log2 = staticmethod(math.log2)

    @staticmethod
    def asarray(value, dtype: Any = None) -> float:
        return float(value)

    @staticmethod
    def where(condition, true, false):
        return true if condition else false

    @staticmethod
    def clip(value, lower, upper):
        return min(max(value, lower), upper)

    @staticmethod
    def shape(value) -> tuple[()]:
        return ()

    @staticmethod
    def full(shape: tuple[()], value):
        return value

    @staticmethod
    def broadcast_to(value, shape: tuple[()]):
        return value


def on_floats(formula: Callable) -> Callable:
    """`formula` for floats: itself and the functions of this package that it calls see `Floats` as `np`."""
    return _rebuilt(formula, {})


def _rebuilt(function: FunctionType, worlds: dict[str, dict[str, Any]]) -> FunctionType:
    """A copy of `function` whose module's names are looked up in a copied world, one per module."""
    module = function.__module__
    if module not in worlds:
        world = worlds[module] = dict(function.__globals__)
        world["np"] = Floats
        for name, value in function.__globals__.items():
            if isinstance(value, FunctionType) and value.__module__.startswith("simulator."):
                world[name] = _rebuilt(value, worlds)
    copy = FunctionType(
        function.__code__, worlds[module], function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
