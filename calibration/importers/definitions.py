"""What the metrics of run records mean, how other tools' definitions become them, and how close is close enough.

The record's definitions (docs/records.md): TTFT is arrival to first token; TPOT is (last token - first token) /
(output tokens - 1), one value per request; ITL is the gap between two successive tokens, over all tokens of all
requests; end to end is arrival to last token. All in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.errors import UserError

TOLERANCE = 0.01  # how far a file's own figures may disagree, relative
SEVERAL = 0.7  # gaps per token below which chunks hold several tokens by design, not because a client fell behind
STATISTICS = ("mean", "median", "p99")
SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# What a time of one request can be, in seconds; outside it milliseconds and seconds were probably mixed up. The lower
# ends are below what any GPU does in one step, the upper ends above what a client waits for.
PLAUSIBLE_S = {"ttft_s": (1e-4, 3600.0), "tpot_s": (2e-5, 10.0), "itl_s": (1e-9, 3600.0), "e2e_s": (1e-4, 1e5)}


@dataclass(frozen=True)
class Spread:
    """Mean, median and 99th percentile of one quantity; None: not stated."""

    mean: float | None = None
    median: float | None = None
    p99: float | None = None

    def times(self, factor: float) -> Spread:
        """The same in another unit. A zero is how tools write "not measured", so it becomes None."""
        return Spread(*(value * factor if value else None for value in (self.mean, self.median, self.p99)))

    def items(self) -> list[tuple[str, float]]:
        """The statistics that are known, by name."""
        pairs = zip(STATISTICS, (self.mean, self.median, self.p99))
        return [(name, value) for name, value in pairs if value is not None]


def spread(values: Sequence[float]) -> Spread:
    """Mean, median and p99 (linear between neighbours) of values; nothing of an empty list."""
    if not len(values):
        return Spread()
    array = np.asarray(values, dtype=float)
    return Spread(float(array.mean()), float(np.median(array)), float(np.percentile(array, 99)))


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of values, each counted `weight` times."""
    return float(np.average(np.asarray(values, dtype=float), weights=np.asarray(weights, dtype=float)))


def weighted_quantiles(values: Sequence[float], weights: Sequence[float], share: float) -> tuple[float, float]:
    """The value at which `share` of the weight is reached, as (lowest, highest): rounding may shift it to a neighbour.

    No interpolation: GuideLLM takes the first value whose cumulated share is at least the one asked for.
    """
    order = np.argsort(np.asarray(values, dtype=float), kind="stable")
    array, weight = np.asarray(values, dtype=float)[order], np.asarray(weights, dtype=float)[order]
    cumulated = np.cumsum(weight) / weight.sum()
    places = [min(int(np.searchsorted(cumulated, share + shift)), len(array) - 1) for shift in (-1e-6, 1e-6)]
    return float(array[places[0]]), float(array[places[1]])


def tpot_without_first(time_per_token: float, ttft: float, output_tok: float) -> float:
    """TPOT from a time per token that includes the first: t = (last - start) / n, so TPOT = (n t - TTFT) / (n - 1).

    All in one unit of time; output_tok above 1.
    """
    return (output_tok * time_per_token - ttft) / (output_tok - 1.0)


def gaps_per_token(gaps: int, output_tok: float, requests: int) -> float:
    """Gaps between stream chunks over gaps between tokens: 1 when every chunk carries one token."""
    between = output_tok - requests
    return gaps / between if between > 0 else 0.0


def one_token_per_chunk(gaps: int, output_tok: float, requests: int) -> bool:
    """Whether gaps between chunks are gaps between tokens: as many of them, to 1 %."""
    return abs(gaps_per_token(gaps, output_tok, requests) - 1.0) <= TOLERANCE


def agree(first: float, second: float, tolerance: float = TOLERANCE) -> bool:
    """Whether two figures of one quantity are equal to within `tolerance` of the larger."""
    return abs(first - second) <= tolerance * max(abs(first), abs(second))


def check_same(where: str, first: tuple[str, float | None], second: tuple[str, float | None]) -> None:
    """UserError when two figures of one quantity, each with its name, disagree by more than 1 %; None: no check."""
    (one, value), (other, against) = first, second
    if value is not None and against is not None and not agree(value, against):
        raise UserError(
            f"{where}: {one} is {value:.6g} but {other} gives {against:.6g}, expected the same to {TOLERANCE:.0%}"
        )


def check_spread(where: str, stated: Spread, field: str, recomputed: Spread, source: str) -> None:
    """UserError when a file's summary and what its own list per request gives disagree.

    `field` has "{}" where the file's name has mean, median or p99.
    """
    known = dict(recomputed.items())
    for name, value in stated.items():
        check_same(where, (field.format(name), value), (f"the {name} of {source}", known.get(name)))


def check_plausible(where: str, family: str, statistic: str, value_s: float) -> None:
    """UserError for a time that no request takes: milliseconds taken for seconds, or the reverse."""
    low, high = PLAUSIBLE_S[family]
    if not low <= value_s <= high:
        raise UserError(
            f"{where}: {family}_{statistic} would be {value_s:.6g} s, expected {low:g} to {high:g} s; "
            "milliseconds and seconds seem to be mixed up"
        )
