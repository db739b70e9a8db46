"""Limits that a deployment has to meet (service-level objectives), and the texts that name them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from simulator.errors import UserError, unknown_name

# What is limited -> the figure of `simulator.traffic.metrics` that it is about, without its quantile.
LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2e": "e2e_s", "queue": "queue_s"}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "mean": None}
WHOLE = {
    "energy_per_answer": "energy_j_per_request",
    "energy_per_token": "energy_j_per_output_tok",
    "power": "mean_power_w",
}
# The same for strategies: a question is answered when the strategy ends.
STRATEGY_LATENCIES = {"wall": "wall_s"}
STRATEGY_WHOLE = {"energy_per_answer": "energy_j", "power": "power_w"}
UNITS = {
    "time": {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "energy": {"mj": 1e-3, "j": 1.0, "kj": 1e3, "wh": 3600.0, "kwh": 3.6e6},
    "power": {"mw": 1e-3, "w": 1.0, "kw": 1e3},
}
EXAMPLES = {"time": "2s or 50ms", "energy": "200J or 0.1Wh", "power": "30W or 5kW"}


@dataclass(frozen=True)
class Limit:
    """At most `value` [s, J or W] of `figure`, a key of the figures of a run. `name`: as the user wrote it."""

    name: str
    figure: str
    value: float
    kind: str  # "time", "energy" or "power"

    @property
    def quantile(self) -> float | None:
        """Share of the requests that must stay within a limit on time; None: the limit is on a mean or a whole."""
        return QUANTILES.get(self.name.rpartition("_")[2])

    @property
    def latency(self) -> str:
        """What is limited, without the quantile: "ttft", "energy_per_answer"."""
        return self.name.rpartition("_")[0] if self.kind == "time" else self.name

    def text(self, value: float | None = None) -> str:
        """'ttft_p99 = 2 s' of the limit, or of another value of the same figure."""
        return f"{self.name} = {in_units(self.value if value is None else value, self.kind)}"


def in_units(value: float, kind: str) -> str:
    """'50 ms', '2 s', '1.3 kJ': a value as a limit would be written."""
    scale = {"time": (1.0, "s"), "energy": (1.0, "J"), "power": (1.0, "W")}[kind]
    if kind == "time" and value < 1.0:
        scale = (1e-3, "ms")
    elif value >= 1e4 and kind != "time":
        scale = (1e3, f"k{scale[1]}")
    return f"{value / scale[0]:.3g} {scale[1]}" if math.isfinite(value) else "no bound"


def parse_limits(texts: Iterable[str], power_cap: str | None = None, strategy: bool = False) -> tuple[Limit, ...]:
    """Limits from ("ttft_p99=2s", "tpot_p99=50ms"), and the cap on power. UserError on anything else."""
    known = known_limits(strategy)
    found: dict[str, Limit] = {}
    for text in [*texts, *([] if power_cap is None else [f"power={power_cap}"])]:
        raw, equals, value = text.partition("=")
        name = raw.strip().lower().replace("-", "_").replace("energy_per_request", "energy_per_answer")
        if not equals:
            raise UserError(f"limit '{text}': expected NAME=VALUE with a unit, like ttft_p99=2s")
        if name not in known:
            raise unknown_name("limit", name, known, f"expected one of {_families(strategy)}")
        if name in found:
            raise UserError(f"limit {name} is given twice")
        figure, kind = known[name]
        found[name] = Limit(name, figure, parse_value(value, kind, f"limit {name}"), kind)
    return tuple(found.values())


def known_limits(strategy: bool = False) -> dict[str, tuple[str, str]]:
    """Name of a limit -> (figure, kind)."""
    latencies, whole = (STRATEGY_LATENCIES, STRATEGY_WHOLE) if strategy else (LATENCIES, WHOLE)
    timed = {
        f"{name}_{quantile}": (f"{figure}_{quantile}", "time")
        for name, figure in latencies.items()
        for quantile in QUANTILES
    }
    suffix = "_mean" if strategy else ""
    other = {
        name: (figure + suffix if name != "power" else figure, "power" if name == "power" else "energy")
        for name, figure in whole.items()
    }
    return timed | other


def _families(strategy: bool) -> str:
    latencies, whole = (STRATEGY_LATENCIES, STRATEGY_WHOLE) if strategy else (LATENCIES, WHOLE)
    timed = ", ".join(latencies)
    return f"{timed} with _p50, _p90, _p99 or _mean, {', '.join(whole)}"


def parse_value(text: str, kind: str, what: str) -> float:
    """A value with its unit in SI: '2s', '50 ms', '30W'. UserError when it is none, or not above zero."""
    match = re.fullmatch(r"\s*([-+]?[0-9.]+(?:e[-+]?\d+)?)\s*([a-zA-Z]*)\s*", text, re.IGNORECASE)
    try:
        number = float(match.group(1)) if match else math.nan
    except ValueError:
        number = math.nan
    scale = UNITS[kind].get(match.group(2).lower()) if match else None
    if scale is None or not math.isfinite(number):
        raise UserError(f"{what}: found '{text.strip()}', expected a number with a unit, like {EXAMPLES[kind]}")
    if not number > 0.0:
        raise UserError(f"{what}: found '{text.strip()}', expected more than zero")
    return number * scale


def ratios(limits: Iterable[Limit], figures: Mapping[str, float]) -> dict[str, float]:
    """value / limit by name; above 1 the limit is missed. A figure that is not a number (no request had it) is 0."""
    found = {limit.name: figures[limit.figure] / limit.value for limit in limits}
    return {name: 0.0 if math.isnan(ratio) else ratio for name, ratio in found.items()}
