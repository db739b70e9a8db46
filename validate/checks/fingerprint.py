"""F2: simulated and measured figures in constant ratio, and what the ratio is made of.

Errors of a model scatter and change with load, length and size; a unit, a clock or a count of devices does not. A ratio
counts as a fingerprint when it hardly scatters, lies outside the stated interval, and is far from what noise explains.
The factors themselves, and the same test for any two views, are in `validate.factors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.profile import Z90
from validate.cases import Case, Evidence
from validate.factors import MARGIN, MAX_CV, RatioOfViews, constant_ratio, factor_name
from validate.finding import Finding

__all__ = ["RatioOfViews", "check", "constant_ratio", "factor_name"]

MIN_RUNS = 5  # below, a ratio must have a name
MIN_NAMED_RUNS = 3
# How much the ratios of a group may scatter and still be one constant: what the calibration claims for such runs, but
# no more than this share of the offset itself (factor of two: 0.14 in log); always allowed: MAX_CV.
SCATTER_SHARE = 0.2
# A profile says how far single runs scatter, not how far a whole group is off: a name is matched this well (log).
NAME_TOLERANCE = (0.03, 0.12)
# Offsets above this factor are no error of a model, in however few runs; names are then matched within half of log 3.
HUGE = 300.0
HUGE_TOLERANCE = 0.5
# Metrics with one cause are off by the same factor within this (log).
TOGETHER = 0.10
FALLBACK_SPREAD = 0.15  # log sd of figures that this simulator does not predict
REFUSED_FROM = math.log(1.5)  # a named factor above this makes the figure useless
# A part of a group may be off by a factor: where nearly all runs either agree or show it, within this many of the
# calibration's sd, and the part is one of several runs but not most of them.
PART_SD = 1.5 * Z90
PART_EXPLAINS, MOST_PART = 0.95, 0.5
PART_NAME = 0.2  # single rows scatter: they are named this well, their median as any other
LEAST_PART = math.log(1.6)  # smaller factors, (n - 1)/n among them, are seen in whole groups or in sharp views only
PLAIN_SHARE = 0.05  # share of runs at either end that may lie elsewhere
PLAIN_INTERVALS = 2.0  # a ratio without a name lies this many intervals off: one is what a group is off by now and then
SHARP = 0.10  # a name is likely where the ratios scatter by less (log), else one of several explanations

Key = tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """log(simulated / measured) of one figure, and the log sd that the calibration claims for it."""

    case: Case
    log: float
    claimed: float


@dataclass(frozen=True)
class _Offset:
    """One metric of one group, off by a constant."""

    group: Key
    metric: str
    rows: tuple[_Row, ...]
    log: float
    scatter: float
    name: str | None

    @property
    def as_time(self) -> float:
        """The offset as a time has it: rates turn round."""
        return -self.log if self.metric.endswith("tok_per_s") else self.log


def check(evidence: Evidence) -> Iterator[Finding]:
    """One finding per group of runs and factor; the coarsest group in which the ratio is constant."""
    offsets: list[_Offset] = []
    metrics = dict.fromkeys(name for case in evidence.cases for name in case.measured)
    for metric in metrics:
        offsets.extend(_offsets(evidence, metric))
    for cluster in _clusters(offsets):
        yield _finding(cluster, metrics.keys(), evidence)


# -- which ratios are constant -------------------------------------------------------------------------------------


def _rows(evidence: Evidence, metric: str) -> list[_Row]:
    out = []
    for case in evidence.cases:
        value = case.measured.get(metric)
        theirs = getattr(case.simulated, metric) if case.simulated is not None else None
        if value is None or theirs is None or not (0.0 < value < math.inf and 0.0 < theirs < math.inf):
            continue
        interval = case.prediction.values.get(metric)
        claimed = math.log(interval[2] / interval[1]) / (2.0 * Z90) if interval else FALLBACK_SPREAD
        out.append(_Row(case, math.log(theirs / value), claimed))
    return out


def _model(case: Case) -> Key:
    r = case.record
    return (*_campaign(case), r.model, r.weight_dtype or "")


def _campaign(case: Case) -> Key:
    r = case.record
    return (r.source, r.gpu, r.engine or "", r.campaign)


_LEVELS: tuple[Callable[[Case], Key], ...] = (
    lambda case: (),
    lambda case: (case.record.source,),
    _campaign,
    _model,
    lambda case: (*_model(case), str(case.record.n_gpus or case.record.tp or 1)),
)


def _offsets(evidence: Evidence, metric: str) -> Iterator[_Offset]:
    """From the whole file down to one model on one number of devices; runs that a level explains are not seen again."""
    rows = _rows(evidence, metric)
    noise = evidence.noise.of(metric)
    for level in _LEVELS:
        groups: dict[Key, list[_Row]] = {}
        for row in rows:
            groups.setdefault(level(row.case), []).append(row)
        explained: set[str] = set()
        for key, group in groups.items():
            found = _constant(key, metric, group, noise)
            if found:
                explained |= {row.case.id for row in group}
                yield found
        rows = [row for row in rows if row.case.id not in explained]
    parts = list(_huge(metric, rows))
    seen = {row.case.id for part in parts for row in part.rows}
    yield from parts
    yield from _parts(metric, [row for row in rows if row.case.id not in seen])


def _constant(key: Key, metric: str, rows: Sequence[_Row], noise: float) -> _Offset | None:
    """The offset that all rows share; None if they scatter, or if noise or the calibration's own error explain it."""
    if len(rows) < MIN_NAMED_RUNS:
        return None
    logs = np.array([row.log for row in rows])
    claimed = float(np.median([row.claimed for row in rows]))
    low, log, high = np.quantile(logs, (PLAIN_SHARE, 0.5, 1.0 - PLAIN_SHARE))
    scatter, size = float(high - low) / (2.0 * Z90), abs(float(log))
    if metric.endswith("_p99") and size < math.log(HUGE):  # tails are a matter of the schedule
        return None
    error = scatter / math.sqrt(len(rows))
    if scatter > _allowed(claimed, size) or size <= max(Z90 * claimed, MARGIN * noise, MARGIN * error):
        return None
    name = _name(metric, float(log), rows, claimed)
    if name is None and (len(rows) < MIN_RUNS or size <= PLAIN_INTERVALS * Z90 * claimed):
        return None
    return _Offset(key, metric, tuple(rows), float(log), scatter, name)


def _allowed(claimed: float, size: float) -> float:
    """How far ratios may scatter (log) and still be one constant of this size."""
    return max(MAX_CV, min(claimed, SCATTER_SHARE * size))


def _huge(metric: str, rows: Sequence[_Row]) -> Iterator[_Offset]:
    """Single figures off by thousands, whatever their group does; first tokens wait too variously to be judged."""
    if metric.startswith("ttft") or metric.endswith("_p99"):
        return
    by_name: dict[str, list[_Row]] = {}
    for row in rows:
        if abs(row.log) > math.log(HUGE):
            name = _name(metric, row.log, [row], row.claimed)
            if name:
                by_name.setdefault(name, []).append(row)
    for name, found in by_name.items():
        logs = np.array([row.log for row in found])
        yield _Offset(("single",), metric, tuple(found), float(np.median(logs)), float(logs.std()), name)


def _parts(metric: str, rows: Sequence[_Row]) -> Iterator[_Offset]:
    """Some runs of a campaign off by a known factor while the others agree: rows of another kind among the rest."""
    if metric.startswith("ttft") or metric.endswith("_p99"):
        return
    groups: dict[Key, list[_Row]] = {}
    for row in rows:
        if not (metric.startswith("e2e") and row.case.record.output_tok == 1):  # a first token under another name
            groups.setdefault(_campaign(row.case), []).append(row)
    for key, group in groups.items():
        off = [row for row in group if abs(row.log) > PART_SD * row.claimed]
        found = list(_shares(key, metric, off))
        explained = len(group) - len(off) + sum(len(part.rows) for part in found)
        if len(off) <= MOST_PART * len(group) and explained >= PART_EXPLAINS * len(group):
            yield from found


def _shares(key: Key, metric: str, off: Sequence[_Row]) -> Iterator[_Offset]:
    """The rows that are off, by the factor that their median shows."""
    by_name: dict[str, list[_Row]] = {}
    for row in off:
        name = _name(metric, row.log, [row], Z90 * row.claimed, PART_NAME) if abs(row.log) > LEAST_PART else None
        if name:
            by_name.setdefault(name.partition(" ")[0], []).append(row)
    seen: set[str] = set()
    for core in sorted(by_name.values(), key=len, reverse=True):
        log = float(np.median([row.log for row in core]))
        part = [r for r in off if abs(r.log - log) <= PART_SD * r.claimed and r.case.id not in seen]
        scatter = float(np.std([row.log for row in part])) if part else 0.0
        if len(part) < MIN_NAMED_RUNS or scatter > _allowed(part[0].claimed, abs(log)):
            continue
        name = _name(metric, log, part, part[0].claimed)
        if name:
            seen |= {row.case.id for row in part}
            yield _Offset(("part", *key), metric, tuple(part), log, scatter, name)


def _name(
    metric: str, log: float, rows: Sequence[_Row], claimed: float, widest: float = NAME_TOLERANCE[1]
) -> str | None:
    """By a configuration of the group, if all have the same split; of mixed ones by units alone."""
    setups = [row.case.setup for row in rows]
    same = setups[0] is not None and all(s is not None and s.parallel == setups[0].parallel for s in setups)
    tolerance = HUGE_TOLERANCE if abs(log) > math.log(HUGE) else min(max(NAME_TOLERANCE[0], claimed), widest)
    return factor_name(math.exp(log), setups[0] if same else None, tolerance, modes=_is_time(metric))


# -- what they mean ------------------------------------------------------------------------------------------------


def _clusters(offsets: Sequence[_Offset]) -> list[list[_Offset]]:
    """Offsets of one group of runs that are one factor, rates turned round; powers and energies on their own."""
    out: list[list[_Offset]] = []
    for offset in offsets:
        for cluster in out:
            first = cluster[0]
            alike = abs(offset.as_time - first.as_time) <= max(TOGETHER, 0.1 * abs(first.as_time))
            if first.group == offset.group and alike and _is_time(first.metric) == _is_time(offset.metric):
                cluster.append(offset)
                break
        else:
            out.append([offset])
    return out


def _is_time(metric: str) -> bool:
    return metric.endswith("tok_per_s") or "_s_" in metric or metric == "duration_s"


def _finding(cluster: Sequence[_Offset], metrics: Sequence[str], evidence: Evidence) -> Finding:
    first = min(cluster, key=lambda offset: offset.scatter)
    ratio = math.exp(first.log)
    runs = tuple(dict.fromkeys(row.case.id for offset in cluster for row in offset.rows))
    names = tuple(offset.metric for offset in cluster)
    sharp = first.name is not None and (first.scatter <= SHARP or abs(first.log) > math.log(HUGE))
    # A profile put together from others' parts may be off by a constant of its own.
    likely = sharp and (_known_level(first, evidence) or abs(first.log) > math.log(HUGE))
    refused = likely and abs(first.log) >= REFUSED_FROM
    worst = max(first.rows, key=lambda row: abs(row.log))
    where = " ".join(part for part in first.group if part not in ("", "part", "single"))
    says = (
        f"simulated / measured {first.metric} is {ratio:.4g} in {len(first.rows)} run{'s' * (len(first.rows) > 1)}"
        f"{f' ({where})' if where else ''}, scatter {first.scatter:.1%}, "
        f"{'near ' + first.name if first.name else 'no known factor'}{_extent(cluster, metrics, runs, evidence)}"
    )
    return Finding(
        check="fingerprint.constant_ratio",
        layer="views",
        fault="F2",
        also=("F1",) if len(cluster) > 1 else ("F1", "F5"),
        severity="fail" if refused else "warn",
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


def _known_level(offset: _Offset, evidence: Evidence) -> bool:
    """Whether the simulated side is known to be right on the mean for such runs: inside the range of a fit."""
    return not evidence.own or all(row.case.prediction.status == "ok" for row in offset.rows)


def _extent(cluster: Sequence[_Offset], metrics: Sequence[str], runs: Sequence[str], evidence: Evidence) -> str:
    """Whether one column is off or all times and rates are together, which is what tells a unit from a clock."""
    if not _is_time(cluster[0].metric):
        return ""
    off = {offset.metric for offset in cluster}
    others = {
        metric: abs(_median_as_time(metric, runs, evidence)) < abs(cluster[0].as_time) / 3.0
        for metric in metrics
        if _is_time(metric) and metric not in off and not metric.endswith("_p99")
    }
    others = {metric: agrees for metric, agrees in others.items() if _rows_of(metric, runs, evidence)}
    if not others:
        return "; all times, and rates by the inverse: one clock, one bandwidth or one count" if len(off) > 1 else ""
    agreeing = [metric for metric, agrees in others.items() if agrees]
    if len(agreeing) < len(others):
        return "; other times lean the same way"
    what = "the unit or definition of that column" if len(off) == 1 else "not a clock"
    return f"; not in {', '.join(agreeing[:3])}: {what}"


def _rows_of(metric: str, runs: Sequence[str], evidence: Evidence) -> list[_Row]:
    members = set(runs)
    return [row for row in _rows(evidence, metric) if row.case.id in members]


def _median_as_time(metric: str, runs: Sequence[str], evidence: Evidence) -> float:
    """Median log ratio of a metric in these runs, rates turned round; 0 where there is none."""
    rows = _rows_of(metric, runs, evidence)
    log = float(np.median([row.log for row in rows])) if rows else 0.0
    return -log if metric.endswith("tok_per_s") else log


def _advice(name: str | None, metrics: int) -> str:
    if name is None:
        return "compare both configurations field by field: board, clocks, split, types; then the units of the column"
    if metrics > 1:
        return "check the number of devices, clocks and types on both sides; a unit would be one column's"
    return "check the unit and the definition of this column on both sides"
