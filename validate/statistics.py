"""What may be said of errors: intervals over runs, equivalence within a margin, ranks, regret, support of percentiles.

An error is simulated / measured - 1, as a fraction. The run is the unit: requests of one run share a queue, so they are
no repeats. Standard tests come from scipy; `scipy.stats.bootstrap` resamples on one level only, runs lie on two.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binom, binomtest, kendalltau, norm, pearsonr, spearmanr

DRAWS = 2000
CHUNK = 250  # draws at a time: their counts stay in the processor's cache
CONFIDENCE = 0.90  # two-sided: two one-sided tests at 5 %
# Margins of equivalence, fixed before any data was looked at (TAXONOMY, thresholds): by the start of a metric's name.
MARGINS = {"tpot": 0.10, "itl": 0.10, "ttft": 0.15, "energy": 0.10}
OTHER_MARGIN = 0.10
SENSOR_GAIN = 0.05  # of power sensors, fixed per board (arXiv 2312.02741)


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval; nan ends where there is nothing to resample."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ErrorIntervals:
    """Statistics of n errors in `groups` groups, as fractions; ratio: geometric mean of simulated / measured."""

    n: int
    groups: int
    bias: Interval
    mape: Interval
    median: Interval
    p90: Interval
    ratio: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def resampled_counts(groups: Sequence[Hashable], rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """How often each of n runs is in each draw, shape (draws, n).

    Two levels: as many groups as there are, with replacement, then in each of them as many runs as it has, with
    replacement. With one group, or groups of one, it is the plain bootstrap.
    """
    place = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    member = np.array([place[name] for name in groups])
    times = _counts(rng, np.full(draws, len(place)), len(place))  # of each group in each draw
    out = np.zeros((draws, len(member)), dtype=np.int32)
    for i in range(len(place)):
        runs = np.flatnonzero(member == i)
        out[:, runs] = _counts(rng, times[:, i] * len(runs), len(runs))
    return out


def _counts(rng: np.random.Generator, picks: np.ndarray, n: int) -> np.ndarray:
    """`picks[d]` picks among n, counted: shape (draws, n)."""
    if n == 1:
        return picks[:, None]
    draw = np.repeat(np.arange(len(picks)), picks)
    return np.bincount(draw * n + rng.integers(n, size=len(draw)), minlength=len(picks) * n).reshape(-1, n)


def counted_quantiles(values: np.ndarray, counts: np.ndarray, quantiles: Sequence[float]) -> list[np.ndarray]:
    """Quantiles (linear, as numpy's) of values (n,) that occur `counts` (draws, n) times each, shape (draws,) each."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    ends = np.cumsum(counts[:, order], axis=1, dtype=np.int32)
    last = ends[:, -1] - 1
    out = []
    for q in quantiles:
        position = q * last
        below = np.floor(position).astype(np.int32)
        lower, upper = (ranked[(ends > np.minimum(at, last)[:, None]).argmax(axis=1)] for at in (below, below + 1))
        out.append(lower + (position - below) * (upper - lower))
    return out


def error_intervals(
    ratios: Sequence[float], groups: Sequence[Hashable], rng: np.random.Generator, draws: int = DRAWS
) -> ErrorIntervals:
    """Statistics of simulated / measured, shape (n,) with n >= 1, with their bootstrap intervals (percentiles).

    groups: what runs share an error with, for instance a model on a machine. A single run has no interval.
    """
    ratio = np.asarray(ratios, dtype=float)
    size = np.abs(ratio - 1.0)
    means = np.stack([ratio - 1.0, size, np.log(ratio)], axis=1)
    parts = [
        _drawn(size, means, resampled_counts(groups, rng, min(CHUNK, draws - start)))
        for start in range(0, draws if len(ratio) > 1 else 1, CHUNK)
    ]
    bias, mape, logs, median, p90 = np.concatenate(parts, axis=1)

    def interval(value: float, drawn: np.ndarray) -> Interval:
        if len(ratio) < 2:
            return Interval(float(value), math.nan, math.nan)
        low, high = np.quantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
        return Interval(float(value), float(low), float(high))

    values = means.mean(axis=0)
    return ErrorIntervals(
        n=len(ratio),
        groups=len(set(groups)),
        bias=interval(values[0], bias),
        mape=interval(values[1], mape),
        median=interval(np.median(size), median),
        p90=interval(np.percentile(size, 90), p90),
        ratio=interval(math.exp(values[2]), np.exp(logs)),
    )


def _drawn(size: np.ndarray, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(bias, MAPE, mean log, median, p90) of each draw, shape (5, draws)."""
    weights = counts.astype(float)
    drawn = (weights @ means).T / weights.sum(axis=1)
    return np.concatenate([drawn, counted_quantiles(size, counts, (0.5, 0.9))])


def margin_of(metric: str) -> float:
    """The margin of equivalence of a metric, by its name or the name of its family."""
    return next((margin for start, margin in MARGINS.items() if metric.startswith(start)), OTHER_MARGIN)


def equivalence(ratio: Interval, margin: float) -> str:
    """Two one-sided tests: "pass" if the interval lies inside 1 / (1 + margin) to 1 + margin, "fail" if outside of it,
    else "inconclusive". Symmetric: it does not matter which side is divided by which.
    """
    low, high = 1.0 / (1.0 + margin), 1.0 + margin
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return "inconclusive"
    if low <= ratio.low and ratio.high <= high:
        return "pass"
    return "fail" if ratio.high < low or ratio.low > high else "inconclusive"


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """A share with its exact interval; ValueError for n < 1 or hits outside 0 to n."""
    found = binomtest(hits, n).proportion_ci(confidence, method="exact")
    return Interval(hits / n, float(found.low), float(found.high))


def requests_needed(quantile: float = 0.99, confidence: float = 0.99, over: int = 0) -> int:
    """Fewest requests that show a percentile to lie below a limit that `over` of them exceed (MLPerf's early stopping).

    The smallest n for which P(at most `over` of n exceed it) <= 1 - confidence although the share 1 - quantile would:
    quantile^n <= 1 - confidence for none, 459 for the 99th percentile at 99 %.
    """
    n = over + 1
    while binom.cdf(over, n, 1.0 - quantile) > 1.0 - confidence:
        n *= 2
    low = max(over + 1, n // 2)
    while low < n:
        middle = (low + n) // 2
        if binom.cdf(over, middle, 1.0 - quantile) > 1.0 - confidence:
            low = middle + 1
        else:
            n = middle
    return n


def quantile_supported(requests: float | None, quantile: float = 0.99) -> bool:
    """Whether so many requests say anything of a percentile."""
    return requests is not None and requests >= requests_needed(quantile)


@dataclass(frozen=True)
class Correlations:
    """Over configurations; nan where one side is constant or there are fewer than three."""

    n: int
    pearson: float
    spearman: float
    kendall: float


def correlations(simulated: Sequence[float], measured: Sequence[float]) -> Correlations:
    """Of shape (n,) and (n,). Pearson's alone says little over decades: 0.99 is compatible with errors of 50 %."""
    x, y = np.asarray(simulated, dtype=float), np.asarray(measured, dtype=float)
    if len(x) < 3 or any(np.ptp(side) <= 1e-9 * np.abs(side).max() for side in (x, y)):
        return Correlations(len(x), math.nan, math.nan, math.nan)
    return Correlations(
        len(x), *(float(test(x, y).statistic) for test in (pearsonr, spearmanr, kendalltau))
    )  # fmt: skip


def regret(simulated: Sequence[float], measured: Sequence[float], smaller_is_better: bool = True) -> float:
    """How much worse than the best configuration the one is that the simulator picks, as a fraction of the best."""
    x, y = np.asarray(simulated, dtype=float), np.asarray(measured, dtype=float)
    if smaller_is_better:
        return float(y[np.argmin(x)] / y.min() - 1.0)
    return float(y.max() / y[np.argmax(x)] - 1.0)


def signal_to_noise(values: Sequence[float], noise: float) -> float:
    """Largest difference between configurations over the noise of repeats, both relative to the mean.

    Below about 5 configurations cannot be ranked (TAXONOMY). noise: relative standard deviation of repeats.
    """
    found = np.asarray(values, dtype=float)
    spread = float(np.ptp(found) / found.mean())
    return spread / noise if noise > 0.0 else (math.inf if spread else 0.0)


@dataclass(frozen=True)
class ErrorBudget:
    """What an error of a metric cannot be told from, as relative standard deviations or limits."""

    sensor: float
    client: float
    noise: float
    definition: float

    @property
    def total(self) -> float:
        """Root of the sum of squares: no headline is smaller."""
        return math.hypot(self.sensor, self.client, self.noise, self.definition)


def error_budget(metric: str, noise: float, client: float = 0.0, definition: float = 0.0) -> ErrorBudget:
    """The budget of a metric: power and energy go through a sensor, times through a client's clock."""
    sensor = SENSOR_GAIN if metric.startswith(("power", "energy")) else 0.0
    return ErrorBudget(sensor, client, noise, definition)


@dataclass(frozen=True)
class Trend:
    """y along x within groups. slope: median of the slopes of all pairs of a group; tau: of all pairs; p: two-sided."""

    slope: float
    tau: float
    p: float
    pairs: int


def trend(x: Sequence[float], y: Sequence[float], groups: Sequence[Hashable]) -> Trend:
    """Theil-Sen slope and the regional Kendall test: what rises within groups, whatever lies between them.

    Groups are independent; under no trend all orders within a group are equally likely. The sum of concordant minus
    discordant pairs is then nearly normal (Helsel and Frans, 2006, doi:10.1021/es051650b, with tied x left out).
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    slopes, score, variance = [], 0.0, 0.0
    rows: dict[Hashable, list[int]] = {}
    for i, name in enumerate(groups):
        rows.setdefault(name, []).append(i)
    for members in rows.values():
        at = np.array(members)
        at = at[np.linspace(0, len(at) - 1, min(len(at), MAX_GROUP)).astype(int)]
        a, b = np.triu_indices(len(at), 1)
        dx, dy = x[at[b]] - x[at[a]], y[at[b]] - y[at[a]]
        apart = dx != 0.0
        slopes.append(dy[apart] / dx[apart])
        score += float((np.sign(dx) * np.sign(dy)).sum())
        variance += _kendall_variance(x[at])
    every = np.concatenate(slopes) if slopes else np.zeros(0)
    if not len(every):
        return Trend(math.nan, math.nan, math.nan, 0)
    z = max(abs(score) - 1.0, 0.0) / math.sqrt(variance)
    return Trend(float(np.median(every)), score / len(every), float(2.0 * norm.sf(z)), len(every))


MAX_GROUP = 400  # of a group, evenly: pairs grow with the square


def _kendall_variance(x: np.ndarray) -> float:
    """Variance of concordant minus discordant pairs with ties in x."""

    def term(n: np.ndarray) -> float:
        return float((n * (n - 1.0) * (2.0 * n + 5.0)).sum()) / 18.0

    return term(np.array([float(len(x))])) - term(np.unique(x, return_counts=True)[1].astype(float))
