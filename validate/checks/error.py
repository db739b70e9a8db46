"""Errors in the mass: means that hide them, percentiles without support, drifts over load and context.

Findings here concern what a report says of many runs, so they list no runs: no single run is in doubt by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from validate.cases import Evidence
from validate.checks.trust import slack
from validate.error_groups import (
    HIDDEN_MAPE,
    HIDDEN_P90,
    MAPE_OVER_BIAS,
    P90_OVER_BIAS,
    ErrorGroup,
    Pair,
    error_groups,
    grouped,
    hidden_by_mean,
    pairs_of,
)  # fmt: skip
from validate.finding import Finding
from validate.statistics import Trend, quantile_supported, requests_needed, trend
from validate.wording import counted

__all__ = ["ErrorGroup", "check", "error_groups"]

MIN_RUNS = 10  # a 90th percentile of fewer is the largest of them
# A drift over all sweeps together: how much the error moves over the median sweep, and how surely.
DRIFT_WARNS, DRIFT_NOTED = math.log(1.5), math.log(1.15)
MAX_P, MIN_TAU, MIN_SWEEPS = 0.01, 0.5, 3
P99 = ("ttft_s_p99", "tpot_s_p99", "e2e_s_p99")  # of requests; a gap between tokens is one of very many
SLOPES = {"batch": "load", "input_tok": "context"}
SLOPE_FAMILIES = ("TTFT", "TPOT", "ITL", "E2E", "throughput")


def check(evidence: Evidence) -> Iterator[Finding]:
    """F14 where signs cancel; F7 for a drift of the error; a note for percentiles of too few requests."""
    pairs = {case.id: pairs_of(case) for case in evidence.cases}
    yield from _hidden(evidence, [(name, pair) for found in pairs.values() for name, pair in found.items()])
    yield from _unsupported(evidence)
    for axis in SLOPES:
        yield from _drifts(evidence, pairs, axis)


def _hidden(evidence: Evidence, rows: Sequence[tuple[str, Pair]]) -> Iterator[Finding]:
    found: dict[str, list[tuple[tuple, float, float, float, int]]] = {}
    columns: dict[str, dict[str, None]] = {}
    for key, members in grouped(rows).items():
        error = np.array([pair.ratio for pair in members]) - 1.0
        size = np.abs(error)
        statistics = float(error.mean()), float(size.mean()), float(np.percentile(size, 90))
        noise = evidence.noise.of(members[0].metric)
        if len(members) >= MIN_RUNS and hidden_by_mean(*statistics, noise):
            found.setdefault(key[2], []).append((key, *statistics, len(members)))
            columns.setdefault(key[2], {}).update(dict.fromkeys(pair.metric for pair in members))
    for family, groups in found.items():
        (gpu, load, _, regime), bias, mape, p90, n = max(groups, key=lambda group: group[3])
        many = f" (and in {len(groups) - 1} other groups)" if len(groups) > 1 else ""
        yield Finding(
            check="error.signs_cancel",
            layer="error",
            fault="F14",
            severity="note" if evidence.own else "warn",  # our own report prints the size beside every mean
            confidence="certain",
            runs=(),
            metrics=tuple(columns[family]),
            says=(
                f"{family} of {n} runs on {gpu} ({load}, {regime}): the mean error of {100 * bias:+.1f} % hides a mean "
                f"size of {100 * mape:.1f} % and a 90th percentile of {100 * p90:.1f} %{many}"
            ),
            evidence={
                "bias": bias, "mape": mape, "p90": p90, "runs": n,
                "bound": f"mape >= {HIDDEN_MAPE} and >= {MAPE_OVER_BIAS} |bias|, p90 >= {HIDDEN_P90} and >= "
                f"{P90_OVER_BIAS} |bias|",
            },
        )  # fmt: skip


def _unsupported(evidence: Evidence) -> Iterator[Finding]:
    """Percentiles of so few requests that a hundredth of them is none."""
    few: dict[str, tuple[str, ...]] = {}
    for case in evidence.cases:
        names = tuple(name for name in P99 if name in case.measured)
        if names and case.record.num_requests is not None and not quantile_supported(case.record.num_requests):
            few[case.id] = names
    if few:
        least = min(few, key=lambda run: evidence.by_id[run].record.num_requests)
        yield Finding(
            check="error.p99_support",
            layer="error",
            fault="F9",
            severity="note",
            confidence="certain",
            runs=tuple(few),
            metrics=tuple(name for name in P99 if any(name in names for names in few.values())),
            says=(
                f"99th percentiles of {counted(len(few), 'run')} are not supported: fewer than {requests_needed()} "
                f"requests, {evidence.by_id[least].record.num_requests} in '{least}'"
            ),
            evidence={
                "worst_run": least, "requests": float(evidence.by_id[least].record.num_requests),
                "needed": float(requests_needed()), "bound": "0.99^n <= 0.01",
            },
            next="send more requests, or judge the 90th percentile",
        )  # fmt: skip


def _drifts(evidence: Evidence, pairs: dict[str, dict[str, Pair]], axis: str) -> Iterator[Finding]:
    rows: dict[tuple, list[tuple[int, float, Pair]]] = {}
    for number, sweep in enumerate(evidence.sweeps):
        if sweep.axis != axis:
            continue
        for x, run in zip(sweep.x, sweep.runs):
            for family, pair in pairs[run.run_id].items():
                if x > 0.0 and family in SLOPE_FAMILIES:
                    key = (run.source, run.gpu, run.engine, run.campaign, run.load, family)
                    rows.setdefault(key, []).append((number, math.log(x), pair))
    for key, members in rows.items():
        sweeps, x, found = zip(*members)
        y = np.log([pair.ratio for pair in found])
        along = trend(x, y, sweeps)
        effect = along.slope * _median_span(sweeps, x)
        if len(set(sweeps)) >= MIN_SWEEPS and along.p <= MAX_P and abs(effect) >= DRIFT_NOTED:
            least = max(DRIFT_WARNS, slack(evidence, [pair.case for pair in found], found[0].metric))
            strong = abs(effect) >= least and abs(along.tau) >= MIN_TAU
            yield _drift(key, axis, along, effect, len(set(sweeps)), found, strong)


def _median_span(sweeps: Sequence[int], x: Sequence[float]) -> float:
    spans: dict[int, list[float]] = {}
    for sweep, at in zip(sweeps, x):
        spans.setdefault(sweep, []).append(at)
    return float(np.median([np.ptp(found) for found in spans.values()]))


def _drift(
    key: tuple, axis: str, along: Trend, effect: float, sweeps: int, found: Sequence[Pair], strong: bool
) -> Finding:
    source, gpu, *_, family = key
    return Finding(
        check=f"error.slope_in_{SLOPES[axis]}",
        layer="error",
        fault="F7",
        severity="warn" if strong else "note",
        confidence="likely" if strong else "possible",
        runs=(),
        metrics=tuple(dict.fromkeys(pair.metric for pair in found)),
        says=(
            f"the error of {family} of {source} on {gpu} drifts with {SLOPES[axis]}: simulated over measured changes "
            f"by a factor of {math.exp(effect):.2f} over the median of {sweeps} sweeps (p = {along.p:.1g}, "
            f"tau = {along.tau:+.2f})"
        ),
        evidence={
            "exponent": along.slope, "factor_over_a_sweep": math.exp(effect), "kendall_tau": along.tau,
            "p_value": along.p, "sweeps": sweeps,
            "bound": f"|log factor| < {DRIFT_NOTED:.2f} (strong: {DRIFT_WARNS:.2f} and |tau| {MIN_TAU}) or p > {MAX_P}",
        },
        next="a slope in load is the scheduler or the queue"
        if axis == "batch"
        else "a slope in context is the count of KV bytes or of attention's operations",
    )  # fmt: skip
