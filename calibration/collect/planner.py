"""Which points to measure, in which order, and how long it takes.

The choice is D-optimal and greedy. Let M be the information that the priors of the parameters bring, one over their
variance on the diagonal. A point with sensitivities J (d log metric / d log parameter, over the metric's standard
deviation) adds J'J to it. The next point is the one with the largest gain in log det M per second of measuring, until
no point gains `LEAST_GAIN` any more or the budget is spent. Then come held-out points of sizes in between, and A/A
repeats of one point for the noise floor. The order is drawn with the seed, so that a drift of clocks or temperature
does not look like an effect of size; the repeats stand at the start, in the middle and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.collect.point import Point
from calibration.collect.sensitivity import Expected
from calibration.collect.session import MOST_REPETITIONS
from simulator.errors import UserError

LEAST_GAIN = 0.1  # of log det: the spread of one parameter shrinks by 5 %
MOST_POINTS = 40
POINT_S = 0.5  # around every run: meters, journal, garbage
LONGEST_SHARE = 0.25  # of the budget that one point may take
HELD_OUT_SHARE = 0.25  # held-out points per fitted point
FIT_BUDGET = 0.65  # of the time: the rest is for repeats and held-out points
REPEATS = 3


@dataclass(frozen=True)
class Plan:
    """Points in the order of measuring, with the seconds that each is expected to take, and what it is good for.

    `identified`: by parameter, its prior spread and the spread that the fitted points should leave it with.
    """

    points: tuple[Point, ...]
    seconds: tuple[float, ...]
    identified: dict[str, tuple[float, float]]
    refused: tuple[str, ...] = ()

    @property
    def total_s(self) -> float:
        """Expected duration without the start of the engine."""
        return sum(self.seconds)


def point_seconds(run_s: float, seconds_per_point: float, warm_up_s: float | None = None) -> float:
    """Expected duration of a point: a warm-up, then runs until the windows are long enough together.

    `warm_up_s` None: a warm-up lasts as long as a run.
    """
    runs = min(MOST_REPETITIONS, max(1, math.ceil(seconds_per_point / run_s)))
    return POINT_S + (run_s if warm_up_s is None else warm_up_s) + runs * run_s


def plan_sweep(
    fitted: Expected,
    between: Expected | None,
    *,
    budget_s: float,
    seconds_per_point: float,
    seed: int,
    repeats: int = REPEATS,
    held_out: int | None = None,
) -> Plan:
    """A plan from the candidates `fitted` and, for held-out points, `between`. Deterministic.

    UserError when not even one point and its repeats fit into `budget_s`. held_out None: a quarter as many as fitted.
    """
    cost = _costs(fitted, seconds_per_point)
    chosen, information = choose(fitted, cost, FIT_BUDGET * budget_s, LONGEST_SHARE * budget_s)
    if not chosen:
        least = (min(cost) / min(FIT_BUDGET, LONGEST_SHARE)) / 60.0
        raise UserError(f"--minutes {budget_s / 60.0:g} is too short for any point, expected at least {least:.1f}")
    costs = {fitted.points[i]: float(cost[i]) for i in chosen}
    left_s = budget_s - sum(costs.values())
    again, left_s = _repeats(costs, repeats, left_s)
    wanted = max(2, round(HELD_OUT_SHARE * len(chosen))) if held_out is None else held_out
    others: dict[Point, float] = {}
    if between is not None:
        inside = between.take(within(between.points, list(costs)))
        others = spread_out(inside, _costs(inside, seconds_per_point), wanted, left_s) if inside.points else {}
    return _ordered(costs, again, others, seed, spreads(fitted, information), fitted.refused)


def plan_grid(grid: Expected, *, seconds_per_point: float, seed: int, repeats: int = REPEATS) -> Plan:
    """A plan that measures every point of a user's grid, and repeats of one of them."""
    cost = _costs(grid, seconds_per_point)
    costs = {point: float(c) for point, c in zip(grid.points, cost)}
    again, _ = _repeats(costs, repeats, math.inf)
    information = prior_information(grid) + sum(rows.T @ rows for rows in grid.rows)
    return _ordered(costs, again, {}, seed, spreads(grid, information), grid.refused)


def _costs(expected: Expected, seconds_per_point: float) -> np.ndarray:
    warm = expected.seconds if expected.warm_up_s is None else expected.warm_up_s
    return np.array([point_seconds(float(s), seconds_per_point, float(w)) for s, w in zip(expected.seconds, warm)])


def prior_information(expected: Expected) -> np.ndarray:
    """(P, P) information of the priors."""
    return np.diag(expected.prior_log_sd**-2.0)


def choose(expected: Expected, cost: np.ndarray, budget_s: float, longest_s: float) -> tuple[list[int], np.ndarray]:
    """(indices of the chosen points in order of choice, information after them)."""
    information = prior_information(expected)
    chosen: list[int] = []
    left_s = budget_s
    while len(chosen) < MOST_POINTS:
        covariance = np.linalg.inv(information)
        gains = np.array([gain(rows, covariance) for rows in expected.rows])
        gains[chosen] = 0.0
        gains[(cost > left_s) | (cost > longest_s)] = 0.0
        best = int(np.argmax(np.where(gains >= LEAST_GAIN, gains / cost, 0.0)))
        if gains[best] < LEAST_GAIN:
            break
        chosen.append(best)
        left_s -= float(cost[best])
        information = information + expected.rows[best].T @ expected.rows[best]
    return chosen, information


def gain(rows: np.ndarray, covariance: np.ndarray) -> float:
    """log det(M + J'J) - log det(M), with M the inverse of `covariance`; by the matrix determinant lemma."""
    return float(np.linalg.slogdet(np.eye(len(rows)) + rows @ covariance @ rows.T)[1])


def spreads(expected: Expected, information: np.ndarray) -> dict[str, tuple[float, float]]:
    """(prior, expected) standard deviation of each parameter's logarithm."""
    after = np.sqrt(np.diag(np.linalg.inv(information)))
    return {n: (float(p), float(a)) for n, p, a in zip(expected.names, expected.prior_log_sd, after)}


def _repeats(costs: dict[Point, float], repeats: int, left_s: float) -> tuple[dict[Point, float], float]:
    """(further measurements of one point, time left): of the middle one by duration, or of a cheaper one if need be."""
    by_cost = sorted(costs, key=lambda point: (costs[point], point.key))
    for point in reversed(by_cost[: len(by_cost) // 2 + 1]):
        whole = (repeats - 1) * costs[point]
        if whole <= left_s:
            return {replace(point, repeat=n): costs[point] for n in range(1, repeats)}, left_s - whole
    raise UserError("the budget leaves no time for repeats of any point, expected a longer --minutes or --repeats 1")


def within(points: Sequence[Point], fitted: Sequence[Point]) -> list[int]:
    """Indices of the points whose sizes lie between those of fitted points: a fit is not asked beyond its range."""
    box = np.array([_sizes(point) for point in fitted])
    low, high = box.min(axis=0), box.max(axis=0)
    return [i for i, point in enumerate(points) if np.all((low <= _sizes(point)) & (_sizes(point) <= high))]


def _sizes(point: Point) -> np.ndarray:
    return np.array([point.concurrency, point.input_tok, point.output_tok])


def spread_out(expected: Expected, cost: np.ndarray, wanted: int, budget_s: float) -> dict[Point, float]:
    """Points far from each other in log size, for which there is time; the first one near the middle."""
    places = np.log([_sizes(point) for point in expected.points])
    distance = -np.linalg.norm(places - np.median(places, axis=0), axis=1)
    found: dict[Point, float] = {}
    taken = np.zeros(len(places), dtype=bool)
    while len(found) < wanted:
        open_ = ~taken & (cost <= budget_s / (wanted - len(found)))  # a fair share of the time that is left
        if not open_.any():
            break
        best = int(np.argmax(np.where(open_, distance, -np.inf)))
        found[expected.points[best]] = float(cost[best])
        budget_s -= float(cost[best])
        taken[best] = True
        apart = np.linalg.norm(places - places[best], axis=1)
        distance = apart if len(found) == 1 else np.minimum(distance, apart)
    return found


def _ordered(
    costs: dict[Point, float],
    again: dict[Point, float],
    others: dict[Point, float],
    seed: int,
    identified: dict[str, tuple[float, float]],
    refused: tuple[str, ...],
) -> Plan:
    """The points drawn into an order, engines with and without CUDA graphs one after the other."""
    seconds = {**costs, **others, **again}
    repeated = {replace(point, repeat=0) for point in again}
    points = [point for point in (*costs, *others) if point not in repeated]
    order = [points[i] for i in np.random.default_rng(seed).permutation(len(points))]
    blocks = [[p for p in order if p.cuda_graphs is graphs] for graphs in (None, True, False)]
    same = sorted([*repeated, *again], key=lambda point: point.repeat)
    blocks = [_with_repeats(b, [p for p in same if p.cuda_graphs is g]) for b, g in zip(blocks, (None, True, False))]
    ordered = tuple(point for block in blocks for point in block)
    return Plan(ordered, tuple(seconds[point] for point in ordered), identified, refused)


def _with_repeats(points: Sequence[Point], same: Sequence[Point]) -> list[Point]:
    """`points` with the repeats spread evenly: the first before all, the last after all."""
    out = list(points)
    for number, point in enumerate(same):
        share = number / max(1, len(same) - 1)
        out.insert(round(share * len(points)) + number, point)
    return out
