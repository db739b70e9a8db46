"""Limits that a choice must keep, and the best candidate within them: "best accuracy within 10 s and 200 J"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.errors import UserError, unknown_name

# What a limit may be put on: short names for the figures that people mean by them.
SHORT = {
    "wall_s": "wall_s_p50",
    "energy_j": "energy_j_p50",
    "cost_usd": "cost_usd_p50",
    "memory_byte": "peak_memory_byte",
    "power_w": "mean_power_w",
    "written_tok": "written_tok_p50",
    "ttft_s": "ttft_s_p50",
    "tpot_s": "tpot_s_p50",
}
LIMITED = (*SHORT.values(), "wall_s_p90", "wall_s_p99", "ttft_s_p90", "tpot_s_p90", "b_total_tok_p50", "accuracy")
AT_LEAST = ("accuracy",)  # of these more is better


@dataclass(frozen=True)
class Limit:
    """A figure may be at most (of an accuracy: at least) so much."""

    figure: str
    value: float

    def excess(self, found: float) -> float:
        """By what factor the limit is missed, on a log scale; at most 0 where it is kept, infinite without a figure."""
        if not math.isfinite(found):
            return math.inf
        if found <= 0.0:
            return math.inf if self.figure in AT_LEAST else -math.inf
        return math.log(found / self.value) * (-1.0 if self.figure in AT_LEAST else 1.0)


def figure_name(text: str, what: str = "figure") -> str:
    """The figure that a user means. UserError, with the nearest names, for one that nobody knows."""
    name = text.strip().lstrip("-").replace("-", "_")
    name = SHORT.get(name, name)
    if name not in LIMITED:
        raise unknown_name(what, text, (*SHORT, *LIMITED), f"known: {', '.join((*SHORT, 'wall_s_p90', 'accuracy'))}")
    return name


def read_limits(given: Sequence[tuple[str, Any]]) -> tuple[Limit, ...]:
    """Limits from names and values. UserError for unknown names, values that nothing keeps, and a figure twice."""
    found: dict[str, Limit] = {}
    for raw, value in given:
        figure = figure_name(raw, "figure of a limit")
        number = _number(raw, value, figure)
        if figure in found and found[figure].value != number:
            raise UserError(
                f"within: {raw} is limited to {found[figure].value:g} and to {number:g}; expected one limit per figure"
            )
        found[figure] = Limit(figure, number)
    return tuple(found.values())


def split_limit(text: str) -> tuple[str, str]:
    """NAME=VALUE in two. UserError without either."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"within '{text}': expected NAME=VALUE, as wall_s=10 or energy_j=200")
    return name.strip(), value.strip()


def _number(raw: str, value: Any, figure: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    most = 1.0 if figure == "accuracy" else math.inf
    if isinstance(value, bool) or not (0.0 < number <= most and math.isfinite(number)):
        expected = "a number above 0 and at most 1" if figure == "accuracy" else "a finite number above 0"
        raise UserError(f"within: {raw} is '{value}', which no candidate can keep; expected {expected}")
    return number


@dataclass(frozen=True)
class Choice:
    """What is best within the limits. best: name, None where nothing keeps them all; then `nearest` misses least.

    missing: (figure, value found, limit) that the nearest one misses.
    """

    wanted: str
    feasible: tuple[str, ...]
    best: str | None
    nearest: str | None
    missing: tuple[tuple[str, float, float], ...] = ()


def choose(figures: Mapping[str, Mapping[str, float]], limits: Sequence[Limit], wanted: str) -> Choice:
    """Of candidates with these figures the best by `wanted`; of equally good ones the first."""
    kept = {
        name: all(limit.excess(own.get(limit.figure, math.nan)) <= 1e-12 for limit in limits)
        for name, own in figures.items()
    }
    feasible = tuple(name for name, ok in kept.items() if ok)
    judged = [name for name in feasible if math.isfinite(figures[name].get(wanted, math.nan))]
    sign = -1.0 if wanted in AT_LEAST else 1.0
    best = min(judged, key=lambda name: sign * figures[name][wanted], default=None)
    if best is not None or feasible:
        return Choice(wanted, feasible, best, None)
    excess = {
        name: [max(0.0, limit.excess(own.get(limit.figure, math.nan))) for limit in limits]
        for name, own in figures.items()
    }
    nearest = min(excess, key=lambda name: (max(excess[name]), sum(excess[name])))
    missing = tuple(
        (limit.figure, figures[nearest].get(limit.figure, math.nan), limit.value)
        for limit, over in zip(limits, excess[nearest])
        if over > 1e-12
    )
    return Choice(wanted, (), None, nearest, missing)
