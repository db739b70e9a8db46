"""Family 3: the latency-throughput curve of open arrivals, from an idle server to one that cannot keep up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simulator.traffic.served import Served
from validate.laws.law import Family, Law, Result
from validate.laws.runs import BELOW_SATURATION, LOADS, OVERLOAD, REQUESTS, SEATS, Runs, mean_s, percent
from validate.laws.subjects import Subject

RAMULATOR = "latency-throughput tests of Ramulator 2 (Luo et al. 2023)"

RISING = Law(
    "3.1", "latency rises with load", "The same requests, sent faster, do not end sooner.",
    "mean E2E(load) is monotone", RAMULATOR, "s", tolerance=0.01,
)  # fmt: skip
UNLOADED = Law(
    "3.2", "unloaded end", "Requests that never meet take what a lone one takes.",
    "E2E(load -> 0) = E2E of a lone request", RAMULATOR, "s",
)  # fmt: skip
DELIVERED = Law(
    "3.3", "throughput = offered load", "Below saturation requests end at the rate at which they come.",
    "ends = arrivals in the middle of the run, as far as whoever is inside allows", "conservation of requests", "req",
    tolerance=0.0,
)  # fmt: skip
CAPACITY = Law(
    "3.4", "never above capacity", "No load gets more answers per second than a server gives that is always full.",
    "throughput(load) <= capacity", RAMULATOR, "req/s", tolerance=0.05,
)  # fmt: skip
KNEE = Law(
    "3.5", "knee below capacity", "Latency rises faster near capacity than far from it.",
    "slope of mean E2E over the last loads > slope over the first ones", RAMULATOR, "s",
)  # fmt: skip
OVERLOADED = Law(
    "3.6", "overload", "Above capacity the queue grows all along: the last requests wait longer than the middle ones.",
    "mean TTFT of the last fifth > mean TTFT of the middle fifth", "stability of a queue (Loynes 1962)", "s",
)  # fmt: skip

FAMILY = Family(
    "Latency-throughput curve",
    f"{REQUESTS} requests of 128 to 384 prompt and 32 to 96 output tokens on {SEATS} seats, Poisson arrivals at "
    f"{', '.join(map(percent, (*LOADS, OVERLOAD)))} of capacity (closed loop, steady window).",
    (RISING, UNLOADED, DELIVERED, CAPACITY, KNEE, OVERLOADED),
)


def check(subject: Subject, runs: Runs) -> Iterator[Result]:
    """One result per law."""
    curve = runs.curve
    latency = [mean_s(curve[load], "e2e") for load in (*LOADS, OVERLOAD)]
    names = [f"load {percent(load)}" for load in (*LOADS, OVERLOAD)]
    yield RISING.rising(latency, names)
    alone = runs.sparse.requests
    yield UNLOADED.equal(alone.finished_s - alone.arrival_s, runs.lone.e2e_s)
    below = [load for load in LOADS if load <= BELOW_SATURATION]
    ended, came, slack = np.array([_middle(curve[load]) for load in below]).T
    yield DELIVERED.at_most(np.abs(ended - came), slack, names)
    rates = [_rate(curve[load]) for load in (*LOADS, OVERLOAD)]
    yield CAPACITY.at_most(rates, runs.capacity_per_s, names)
    slopes = np.diff(latency[:-1]) / np.diff(LOADS)
    yield KNEE.at_least(slopes[-1], slopes[0], [f"knee at {percent(_knee(latency[:-1]))}"])
    yield OVERLOADED.at_least(*_last_and_middle(curve[OVERLOAD]))


def _middle(served: Served) -> tuple[float, float, float]:
    """(requests ended, requests come, most that these can differ) between the 20th and the 80th percentile arrival.

    They differ by the change of the number inside, of which there are at most twice as many as seats.
    """
    requests = served.requests
    start, end = np.quantile(requests.arrival_s, (0.2, 0.8))
    ended = ((requests.finished_s > start) & (requests.finished_s <= end)).sum()
    came = ((requests.arrival_s > start) & (requests.arrival_s <= end)).sum()
    return float(ended), float(came), 2.0 * SEATS


def _rate(served: Served) -> float:
    """Requests ended per second, between the ends of the first and the last tenth of them."""
    ends = np.sort(served.requests.finished_s)
    first, last = len(ends) // 10, 9 * len(ends) // 10
    return float((last - first) / (ends[last] - ends[first]))


def _knee(latency: list[float]) -> float:
    """The load at which the curve is farthest below the line from its first to its last point."""
    x, y = np.array(LOADS), np.array(latency)
    line = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return float(x[int(np.argmax(line - y))])


def _last_and_middle(served: Served) -> tuple[float, float]:
    """Mean times to the first token [s] of the last and of the middle fifth of the requests."""
    waited = served.requests.first_token_s - served.requests.arrival_s
    fifth = len(waited) // 5
    return float(waited[-fifth:].mean()), float(waited[2 * fifth : 3 * fifth].mean())
