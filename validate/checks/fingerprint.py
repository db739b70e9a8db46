"""F2: simulated and measured figures in constant ratio, and what the ratio is made of.

Errors of a model scatter and change with load, length and size; a unit, a clock or a count of devices does not. A ratio
counts as a fingerprint when it hardly scatters, lies outside the stated interval, and is far from what noise explains.
The factors themselves, and the same test for any two views, are in `validate.factors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from validate.cases import Evidence
from validate.checks.constant_offsets import (
    HUGE,
    MIN_RUNS,
    Offset,
    Table,
    is_time,
    known_level,
    offsets_of,
    rows_of,
)
from validate.checks.trust import fitted_on_gpu
from validate.factors import RatioOfViews, constant_ratio, factor_name
from validate.finding import Finding
from validate.wording import counted

__all__ = ["MIN_RUNS", "RatioOfViews", "check", "constant_ratio", "factor_name"]

# Metrics with one cause are off by the same factor within this (log).
TOGETHER = 0.10
REFUSED_FROM = math.log(1.5)  # a named factor above this makes the figure useless
SHARP = 0.10  # a name is likely where the ratios scatter by less (log), else one of several explanations


def check(evidence: Evidence) -> Iterator[Finding]:
    """One finding per group of runs and factor; the coarsest group in which the ratio is constant."""
    names = dict.fromkeys(name for case in evidence.cases for name in case.measured)
    table = {name: rows_of(evidence, name) for name in names}
    offsets = [offset for name, rows in table.items() for offset in offsets_of(evidence, name, list(rows.values()))]
    for cluster in _clusters(offsets):
        yield _finding(cluster, table, evidence)


def _clusters(offsets: Sequence[Offset]) -> list[list[Offset]]:
    """Offsets of one group of runs that are one factor, rates turned round; powers and energies on their own."""
    out: list[list[Offset]] = []
    for offset in offsets:
        for cluster in out:
            first = cluster[0]
            alike = abs(offset.as_time - first.as_time) <= max(TOGETHER, 0.1 * abs(first.as_time))
            if first.group == offset.group and alike and is_time(first.metric) == is_time(offset.metric):
                cluster.append(offset)
                break
        else:
            out.append([offset])
    return out


def _finding(cluster: Sequence[Offset], table: Table, evidence: Evidence) -> Finding:
    first = min(cluster, key=lambda offset: offset.scatter)
    ratio = math.exp(first.log)
    runs = tuple(dict.fromkeys(row.case.id for offset in cluster for row in offset.rows))
    names = tuple(offset.metric for offset in cluster)
    sharp = first.name is not None and (first.scatter <= SHARP or abs(first.log) > math.log(HUGE))
    likely = sharp and (known_level(first.rows, evidence) or abs(first.log) > math.log(HUGE))
    extent, one_column = _extent(cluster, table, runs)
    # Without runs of this GPU the simulated level may be off for times together, and for first tokens or power alone.
    told = fitted_on_gpu(evidence, [row.case for row in first.rows]) or abs(first.log) > math.log(HUGE)
    told = told or (one_column and not first.metric.startswith("ttft"))
    severity = "fail" if likely and abs(first.log) >= REFUSED_FROM else "warn" if told else "note"
    worst = max(first.rows, key=lambda row: abs(row.log))
    where = " ".join(part for part in first.group if part not in ("", "part", "single"))
    says = (
        f"simulated / measured {first.metric} is {ratio:.4g} in {counted(len(first.rows), 'run')}"
        f"{f' ({where})' if where else ''}, scatter {first.scatter:.1%}, "
        f"{'near ' + first.name if first.name else 'no known factor'}{extent}"
    )
    return Finding(
        check="fingerprint.constant_ratio",
        layer="views",
        fault="F2",
        also=_also(cluster),
        severity=severity,
        confidence="likely" if likely else "possible",
        runs=runs,
        metrics=names,
        says=says,
        evidence={
            "ratio": ratio, "scatter_log": first.scatter, "runs": float(len(first.rows)), "factor": first.name or "",
            "claimed_log_sd": float(np.median([row.claimed for row in first.rows])),
            "noise": evidence.noise.of(first.metric), "worst_run": worst.case.id, "worst_ratio": math.exp(worst.log),
            "formula": "C2: scatter < 3 % or the calibration's own; |log ratio| > its interval, 3 noise, 3 errors",
        },
        next=_advice(first.name, len(cluster)),
    )  # fmt: skip


def _also(cluster: Sequence[Offset]) -> tuple[str, ...]:
    """What else makes a constant ratio: another system; a column's definition; of power its window and its data."""
    metrics = {offset.metric for offset in cluster}
    if all(name.startswith(("power", "energy")) for name in metrics):
        return ("F1", "F5", "F8", "F9")
    return ("F1",) if len(metrics) > 1 else ("F1", "F5")


def _extent(cluster: Sequence[Offset], table: Table, runs: Sequence[str]) -> tuple[str, bool]:
    """Whether one column is off or all times and rates are together, which is what tells a unit from a clock.

    A clause, and whether the other columns agree.
    """
    if not is_time(cluster[0].metric):
        return "", False
    off = {offset.metric for offset in cluster}
    others = {
        metric: abs(median) < abs(cluster[0].as_time) / 3.0
        for metric in table
        if is_time(metric) and metric not in off and not metric.endswith("_p99")
        and (median := _median_as_time(metric, table, runs)) is not None
    }  # fmt: skip
    if not others:
        alike = "; all times, and rates by the inverse: one clock, one bandwidth or one count"
        return (alike if len(off) > 1 else ""), False
    agreeing = [metric for metric, agrees in others.items() if agrees]
    if len(agreeing) < len(others):
        return "; other times lean the same way", False
    what = "the unit or definition of that column" if len(off) == 1 else "not a clock"
    return f"; not in {', '.join(agreeing[:3])}: {what}", True


def _median_as_time(metric: str, table: Table, runs: Sequence[str]) -> float | None:
    """Median log ratio of a metric in these runs, rates turned round; None where no run has it."""
    logs = [table[metric][run].log for run in runs if run in table[metric]]
    if not logs:
        return None
    return -float(np.median(logs)) if metric.endswith("tok_per_s") else float(np.median(logs))


def _advice(name: str | None, metrics: int) -> str:
    if name is None:
        return "compare both configurations field by field: board, clocks, split, types; then the units of the column"
    if metrics > 1:
        return "check the number of devices, clocks and types on both sides; a unit would be one column's"
    return "check the unit and the definition of this column on both sides"
