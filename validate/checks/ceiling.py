"""F4, the two-sided bound (B9): measured better than the best that the simulator can say, yet possible.

Then an efficiency, a peak or a count of bytes that sets the simulator's ceiling is off, or the counter is. One run
below its interval is noise; most runs of a group that should run at the ceiling are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from validate.cases import Case, Evidence
from validate.checks.bounds import floor_of
from validate.checks.trust import slack
from validate.finding import Finding

MIN_RUNS, MIN_SHARE = 3, 0.6  # of a group above the ceiling: at least so many, and this share
# Only where the simulator itself says that bytes or FLOPs set the time: at most this many times the data sheet's floor.
PLATEAU = 3.0
NOISES = 2.0  # a run counts as better than the best end of our interval from this many noise floors on
# Beside another simulator, which states no interval: several runs together stand above it by less than one alone.
NOISES_OF_OTHERS = 1.5
METRICS = ("tpot_s_mean", "tpot_s_median", "itl_s_mean", "itl_s_median", "e2e_s_mean", "output_tok_per_s")
PEAK_MARGIN = 0.01  # relative, of a data sheet's figure
FORMULA = "B9: measured best <= simulator's ceiling <= data-sheet peak"


def two_sided(best: float, ceiling: float, peak: float, noise: float = 0.0, noises: float = NOISES) -> str:
    """Where the best measured rate stands: "below", "above_ceiling" (F4) or "above_peak" (F3). All in one unit.

    best: the best measured rate; ceiling: the most that the simulator can say; peak: the data sheet's; noise: relative
    spread of repeats; noises: how many of them count. Times go in as their inverse. ValueError when a figure is not
    positive and finite.
    """
    for name, value in (("best", best), ("ceiling", ceiling), ("peak", peak)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} = {value}, expected a positive number")
    if best > peak * (1.0 + PEAK_MARGIN):
        return "above_peak"
    return "above_ceiling" if best > ceiling * (1.0 + noises * noise) else "below"


@dataclass(frozen=True)
class _Point:
    """One figure as a rate: measured, simulated with the best end of its interval, and the data sheet's."""

    case: Case
    measured: float
    simulated: float
    best: float
    peak: float


def check(evidence: Evidence) -> Iterator[Finding]:
    """One finding per group of runs and metric."""
    for metric in METRICS:
        groups: dict[tuple, list[_Point]] = {}
        for case in evidence.cases:
            point = _point(case, metric, math.exp(slack(evidence, [case], metric) / 2.0), evidence.own)
            if point is not None:
                groups.setdefault(_group(case), []).append(point)
        for group in groups.values():
            finding = _finding(metric, group, evidence.noise.of(metric), NOISES if evidence.own else NOISES_OF_OTHERS)
            if finding:
                yield finding


def _group(case: Case) -> tuple:
    """Runs that share a rig, an architecture, its precision and its split."""
    r = case.record
    return (r.source, r.gpu, r.engine, r.campaign, r.model, r.weight_dtype, case.setup.parallel)


def _point(case: Case, metric: str, further: float, own: bool) -> _Point | None:
    """further: factor by which the ceiling may lie above the interval, where the GPU was not calibrated."""
    measured = case.measured.get(metric)
    floor = floor_of(case, metric) if case.setup is not None else None
    # Our interval says nothing of another simulator's figures: noise alone stands between them and the measurement.
    interval = case.prediction.values.get(metric) if own else (1.0, 1.0, 1.0)
    theirs = getattr(case.simulated, metric) if case.simulated is not None else None
    if floor is None or interval is None or not (_positive(measured) and _positive(theirs)):
        return None
    value, low, high = interval
    if metric.endswith("tok_per_s"):
        found = _Point(case, measured, theirs, theirs * high / value * further, floor)
    else:
        found = _Point(case, 1.0 / measured, 1.0 / theirs, value / (theirs * low) * further, 1.0 / floor)
    return found if found.simulated * PLATEAU >= found.peak else None


def _positive(value: float | None) -> bool:
    return value is not None and 0.0 < value < math.inf


def _finding(metric: str, group: Sequence[_Point], noise: float, noises: float) -> Finding | None:
    better = [p for p in group if two_sided(p.measured, p.best, p.peak, noise, noises) == "above_ceiling"]
    if len(better) < max(MIN_RUNS, MIN_SHARE * len(group)):
        return None
    worst = max(better, key=lambda point: point.measured / point.best)
    gain = float(np.median([p.measured / p.simulated for p in better]))
    of_ceiling, of_peak = worst.simulated / worst.peak, worst.measured / worst.peak
    return Finding(
        check="ceiling.two_sided",
        layer="bounds",
        fault="F4",
        also=("F1", "F2"),
        severity="warn",
        confidence="likely" if len(better) >= 2 * MIN_RUNS else "possible",
        runs=tuple(p.case.id for p in better),
        metrics=(metric,),
        says=f"{len(better)} of {len(group)} runs like {worst.case.id} are better in {metric} than the simulator can "
        f"say, by {gain - 1.0:.0%} in the median: it reaches {of_ceiling:.0%} of the data-sheet bound there, the "
        f"measurement {of_peak:.0%}",
        evidence={
            "worst_run": worst.case.id, "median_gain": gain, "simulated_share_of_bound": of_ceiling,
            "best_share_of_interval": worst.best / worst.peak, "measured_share_of_bound": of_peak, "noise": noise,
            "formula": FORMULA,
        },
    )  # fmt: skip
