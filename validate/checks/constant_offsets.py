"""Groups of runs in which simulated / measured is one constant: from the whole file down to a model on a machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.profile import Z90
from validate.cases import Case, Evidence
from validate.factors import MARGIN, MAX_CV, factor_name

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
FALLBACK_SPREAD = 0.15  # log sd of figures that this simulator does not predict
# A part of a group may be off by a factor: where nearly all runs either agree or show it, within this many of the
# calibration's sd, and the part is one of several runs but not most of them.
PART_SD = 1.5 * Z90
PART_EXPLAINS, MOST_PART = 0.95, 0.5
PART_NAME = 0.2  # single rows scatter: they are named this well, their median as any other
LEAST_PART = math.log(1.6)  # smaller factors, (n - 1)/n among them, are seen in whole groups or in sharp views only
PLAIN_SHARE = 0.05  # share of runs at either end that may lie elsewhere
# A ratio without a name, or under a profile put together from others' parts, lies this many intervals off: one is what
# a group is off by now and then.
PLAIN_INTERVALS = 2.0

Key = tuple[str, ...]
Table = Mapping[str, Mapping[str, "Row"]]  # rows by metric and run id


@dataclass(frozen=True)
class Row:
    """log(simulated / measured) of one figure, and the log sd that the calibration claims for it."""

    case: Case
    log: float
    claimed: float


@dataclass(frozen=True)
class Offset:
    """One metric of one group, off by a constant."""

    group: Key
    metric: str
    rows: tuple[Row, ...]
    log: float
    scatter: float
    name: str | None

    @property
    def as_time(self) -> float:
        """The offset as a time has it: rates turn round."""
        return -self.log if self.metric.endswith("tok_per_s") else self.log


def rows_of(evidence: Evidence, metric: str) -> dict[str, Row]:
    """By run id."""
    out = {}
    for case in evidence.cases:
        value = case.measured.get(metric)
        theirs = getattr(case.simulated, metric) if case.simulated is not None else None
        if value is None or theirs is None or not (0.0 < value < math.inf and 0.0 < theirs < math.inf):
            continue
        interval = case.prediction.values.get(metric)
        claimed = math.log(interval[2] / interval[1]) / (2.0 * Z90) if interval else FALLBACK_SPREAD
        out[case.id] = Row(case, math.log(theirs / value), claimed)
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


def offsets_of(evidence: Evidence, metric: str, rows: list[Row]) -> Iterator[Offset]:
    """From the whole file down to one model on one number of devices; runs that a level explains are not seen again."""
    noise = evidence.noise.of(metric)
    for level in _LEVELS:
        groups: dict[Key, list[Row]] = {}
        for row in rows:
            groups.setdefault(level(row.case), []).append(row)
        explained: set[str] = set()
        for key, group in groups.items():
            found = _constant(key, metric, group, noise, known_level(group, evidence), evidence.own)
            if found:
                explained |= {row.case.id for row in group}
                yield found
        rows = [row for row in rows if row.case.id not in explained]
    parts = list(_huge(metric, rows))
    seen = {row.case.id for part in parts for row in part.rows}
    yield from parts
    yield from _parts(metric, [row for row in rows if row.case.id not in seen])


def _constant(key: Key, metric: str, rows: Sequence[Row], noise: float, known_level: bool, own: bool) -> Offset | None:
    """The offset that all rows share; None if they scatter, or if noise or the calibration's own error explain it.

    own: our calibration claims an error of its own; another simulator (False) claims none: its scatter stands for it.
    """
    if len(rows) < MIN_NAMED_RUNS:
        return None
    logs = np.array([row.log for row in rows])
    claimed = float(np.median([row.claimed for row in rows]))
    low, log, high = np.quantile(logs, (PLAIN_SHARE, 0.5, 1.0 - PLAIN_SHARE))
    scatter, size = float(high - low) / (2.0 * Z90), abs(float(log))
    claimed = claimed if own else min(claimed, max(noise, scatter))
    if metric.endswith("_p99") and size < math.log(HUGE):  # tails are a matter of the schedule
        return None
    error = scatter / math.sqrt(len(rows))
    if scatter > _allowed(claimed, size) or size <= max(Z90 * claimed, MARGIN * noise, MARGIN * error):
        return None
    name = _name(metric, float(log), rows, claimed)
    if name is None and len(rows) < MIN_RUNS:
        return None
    if (name is None or not known_level) and size <= PLAIN_INTERVALS * Z90 * claimed:
        return None
    return Offset(key, metric, tuple(rows), float(log), scatter, name)


def _allowed(claimed: float, size: float) -> float:
    """How far ratios may scatter (log) and still be one constant of this size."""
    return max(MAX_CV, min(claimed, SCATTER_SHARE * size))


def _huge(metric: str, rows: Sequence[Row]) -> Iterator[Offset]:
    """Single figures off by thousands, whatever their group does; first tokens wait too variously to be judged."""
    if metric.startswith("ttft") or metric.endswith("_p99"):
        return
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        if abs(row.log) > math.log(HUGE):
            name = _name(metric, row.log, [row], row.claimed)
            if name:
                by_name.setdefault(name, []).append(row)
    for name, found in by_name.items():
        logs = np.array([row.log for row in found])
        yield Offset(("single",), metric, tuple(found), float(np.median(logs)), float(logs.std()), name)


def _parts(metric: str, rows: Sequence[Row]) -> Iterator[Offset]:
    """Some runs of a campaign off by a known factor while the others agree: rows of another kind among the rest."""
    if metric.startswith("ttft") or metric.endswith("_p99"):
        return
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if not (metric.startswith("e2e") and row.case.record.output_tok == 1):  # a first token under another name
            groups.setdefault(_campaign(row.case), []).append(row)
    for key, group in groups.items():
        off = [row for row in group if abs(row.log) > PART_SD * row.claimed]
        found = list(_shares(key, metric, off))
        explained = len(group) - len(off) + sum(len(part.rows) for part in found)
        if len(off) <= MOST_PART * len(group) and explained >= PART_EXPLAINS * len(group):
            yield from found


def _shares(key: Key, metric: str, off: Sequence[Row]) -> Iterator[Offset]:
    """The rows that are off, by the factor that their median shows."""
    by_name: dict[str, list[Row]] = {}
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
            yield Offset(("part", *key), metric, tuple(part), log, scatter, name)


def _name(
    metric: str, log: float, rows: Sequence[Row], claimed: float, widest: float = NAME_TOLERANCE[1]
) -> str | None:
    """By a configuration of the group, if all have the same split; of mixed ones by units alone."""
    setups = [row.case.setup for row in rows]
    same = setups[0] is not None and all(s is not None and s.parallel == setups[0].parallel for s in setups)
    tolerance = HUGE_TOLERANCE if abs(log) > math.log(HUGE) else min(max(NAME_TOLERANCE[0], claimed), widest)
    return factor_name(math.exp(log), setups[0] if same else None, tolerance, modes=is_time(metric))


def is_time(metric: str) -> bool:
    return metric.endswith("tok_per_s") or "_s_" in metric or metric == "duration_s"


def known_level(rows: Sequence[Row], evidence: Evidence) -> bool:
    """Whether the simulated side is known to be right on the mean for such runs: inside the range of a fit."""
    return not evidence.own or all(row.case.prediction.status == "ok" for row in rows)
