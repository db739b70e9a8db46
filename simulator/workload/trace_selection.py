"""A part of a trace, or more than all of it, at another pace. Each function says what it did beside its result."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from simulator.errors import UserError
from simulator.workload.arrivals import MAX_RATE_PER_S, MIN_RATE_PER_S
from simulator.workload.loads import check_count
from simulator.workload.trace_rows import Rows
from simulator.workload.traffic import counted

Said = tuple[str, ...]

MIN_SPEED, MAX_SPEED = 1e-6, 1e6


def check_selection(
    requests: int | None, window_s: tuple[float, float] | None, speed: float | None, rate_per_s: float | None
) -> None:
    """Refuse options that no file can satisfy, before a large one is read."""
    if requests is not None:
        check_count(requests, "number of requests")
    if window_s is not None and not 0.0 <= window_s[0] < window_s[1]:  # also refuses NaN
        found = f"{window_s[0]:g} to {window_s[1]:g} s"
        raise UserError(f"window of a trace: found {found}, expected a start >= 0 and an end after it")
    if speed is not None and not MIN_SPEED <= speed <= MAX_SPEED:
        raise UserError(f"speed of a trace: found {speed:g}, expected a factor from {MIN_SPEED:g} to {MAX_SPEED:g}")
    if rate_per_s is not None and not MIN_RATE_PER_S <= rate_per_s <= MAX_RATE_PER_S:
        raise UserError(f"rate of a trace: found {rate_per_s:g}, expected requests per second above 0")
    if speed is not None and rate_per_s is not None:
        raise UserError("a trace is sped up either by a factor or to a rate, got both")


def in_window(rows: Rows, window_s: tuple[float, float] | None, name: str) -> tuple[Rows, Said]:
    """Requests from window_s[0] up to, not including, window_s[1]; the window begins at t = 0.

    What lies before the window is gone, for the prefix cache too: it is empty at the start.
    """
    if window_s is None:
        return rows, ()
    if rows.arrival_s is None:
        raise UserError(f"trace file '{name}' has no times, from which a window (--window) could be cut")
    start_s, end_s = window_s
    first, last = np.searchsorted(rows.arrival_s, [start_s, end_s], side="left")
    if first == last:
        wanted = f"from {start_s:g} " + (f"to {end_s:g} s" if math.isfinite(end_s) else "s on")
        raise UserError(f"trace file '{name}' has no request {wanted}; found a trace of {rows.arrival_s[-1]:g} s")
    part = rows.take(np.arange(first, last))
    said = f"only {start_s:g} to {end_s:g} s of the trace" if math.isfinite(end_s) else f"the trace from {start_s:g} s"
    return replace(part, arrival_s=part.arrival_s - start_s), (said,)


def first_or_repeated(
    rows: Rows, requests: int | None, repeat: bool, rng: np.random.Generator, name: str
) -> tuple[Rows, Said]:
    """The first `requests` rows, or more than there are: drawn when the rows have no times, repeated when they have."""
    have = len(rows)
    if requests is None or requests == have:
        return rows, ()
    if requests < have:
        return rows.take(np.arange(requests)), (f"only the first {requests:,} of {have:,} requests of the trace",)
    if rows.arrival_s is None:
        said = f"{requests:,} requests drawn with replacement from the {have:,} rows of the file"
        return rows.take(rng.integers(0, have, size=requests)), (said,)
    if not repeat:
        found = f"has {counted(have, 'request')}, expected {requests:,}"
        raise UserError(f"trace file '{name}' {found}: repeat it (--repeat) to get more")
    period_s = rows.arrival_s[-1] - rows.arrival_s[0]
    if period_s <= 0.0:
        raise UserError(f"trace file '{name}' lasts 0 s, which gives no gap with which to repeat it")
    period_s *= have / (have - 1)  # and one mean gap
    copy, index = np.divmod(np.arange(requests), have)
    many = rows.take(index)
    many = replace(many, arrival_s=many.arrival_s + copy * period_s)
    said = f"the trace of {have:,} requests is repeated every {period_s:g} s to reach {requests:,}"
    if rows.own_prefixes and rows.shared_prefix is not None:
        many = replace(many, shared_prefix=_with_copy_in_names(many.shared_prefix, copy))
        said += "; no copy shares a beginning of a prompt with another"
    return many, (said,)


def _with_copy_in_names(prefixes: tuple, copy: np.ndarray) -> tuple:
    return tuple(
        tuple(((*part, repetition), tokens) for part, tokens in parts)
        for parts, repetition in zip(prefixes, copy.tolist())
    )


def paced(rows: Rows, speed: float | None, rate_per_s: float | None, name: str) -> tuple[Rows, Said]:
    """The same requests with all times divided by one factor."""
    if speed is None and rate_per_s is None:
        return rows, ()
    if rows.arrival_s is None:
        raise UserError(
            f"trace file '{name}' has no times, which a speed (--time-scale) or a rate (--trace-rate) could change"
        )
    if speed is None:
        lasts_s = float(rows.arrival_s[-1] - rows.arrival_s[0])
        if lasts_s <= 0.0:
            raise UserError(f"trace file '{name}' lasts 0 s and has no rate that could be changed (--trace-rate)")
        speed = rate_per_s * lasts_s / (len(rows) - 1)
    return replace(rows, arrival_s=rows.arrival_s / speed), (f"times of the trace are sped up by a factor {speed:.6g}",)
