"""A run of traffic over time: what the server was doing, averaged over equal pieces of the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.traffic.metrics import kv_blocks_held, running
from simulator.traffic.served import RequestRecords, Served

MOST_BINS = 4000


@dataclass(frozen=True)
class TimeSeries:
    """Time-averages (B,) between `edges_s` (B + 1,), summed over replicas; `kv_share` is of all their blocks."""

    edges_s: np.ndarray
    running: np.ndarray
    waiting: np.ndarray
    kv_share: np.ndarray
    power_w: np.ndarray  # idle power included


def time_series(served: Served, bins: int = 600) -> TimeSeries:
    """Exact averages over `bins` equal pieces of 0 to `end_s`: no stretch is lost, however short.

    Within a stretch everything counts as constant, the KV cache as it stands in its middle.
    """
    bins = max(1, min(bins, MOST_BINS))
    steps = served.steps
    edges = np.linspace(0.0, served.end_s if served.end_s > 0.0 else 1.0, bins + 1)
    seconds = np.where(steps.duration_s > 0.0, steps.duration_s, 1.0)
    rates = {  # per second of a stretch
        "running": running(steps).astype(float),
        "kv_share": kv_blocks_held(served)[0] / (max(served.kv_blocks, 1) * served.replicas),
        "power_w": steps.joules / seconds - served.idle_power_w,
    }
    means = {name: np.zeros(bins) for name in rates}
    for replica in range(served.replicas):
        rows = slice(*np.searchsorted(steps.replica, (replica, replica + 1)))
        for name, rate in rates.items():
            means[name] += binned_mean(steps.start_s[rows], steps.duration_s[rows], rate[rows], edges)
    means["power_w"] += served.idle_power_w * served.replicas
    return TimeSeries(edges, waiting=mean_waiting(served.requests, edges), **means)


def mean_waiting(requests: RequestRecords, edges_s: np.ndarray) -> np.ndarray:
    """Mean number of requests that wait for their first step, between `edges_s` (B + 1,)."""
    done = ~requests.refused
    waited = [_elapsed(np.sort(times[done]), edges_s) for times in (requests.engine_s, requests.scheduled_s)]
    return np.maximum(np.diff(waited[0] - waited[1]), 0.0) / np.diff(edges_s)


def _elapsed(since_s: np.ndarray, at_s: np.ndarray) -> np.ndarray:
    """Time (T,) that has gone by at `at_s` (T,) since each of `since_s` (ascending), added up."""
    sums = np.concatenate(([0.0], np.cumsum(since_s)))
    count = np.searchsorted(since_s, at_s)
    return count * at_s - sums[count]


def binned_mean(start_s: np.ndarray, duration_s: np.ndarray, rate: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Mean over each of the pieces between `edges_s` (B + 1,) of a step function that is zero outside its stretches.

    Stretches (S,) are ascending and do not overlap. The integral from 0 is piecewise linear with knots at their ends.
    """
    knots = np.column_stack((start_s, start_s + duration_s)).ravel()
    grown = np.column_stack((np.zeros(len(rate)), rate * duration_s)).ravel()
    if not len(knots):
        return np.zeros(len(edges_s) - 1)
    integral = np.interp(edges_s, np.maximum.accumulate(knots), np.cumsum(grown))
    return np.diff(integral) / np.diff(edges_s)
