"""Dead metrics: figures that stand still where they must move, and columns that are a constant times another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from validate.cases import Case, Evidence
from validate.curves import CURVE_METRICS, Curve, curves_of
from validate.finding import Finding
from validate.wording import figure

# A figure that counts nothing shows rounding, not noise; one that is measured shows the noise of its repeats.
STILL = 0.005  # log of largest / smallest
# What must move at least (log) before standing still says anything: clean sweeps that move less than their noise need
# no more than 0.11 of movement (measured here). Without a noise to speak of, equal to all digits, less will do.
MUST_MOVE, NOISES = 0.10, 3.0
MUST_MOVE_EQUAL = 0.05
# Where there is no floor (power, energy, rates, batch) the prediction says what must move: more, it may be off.
MUST_MOVE_PREDICTED = math.log(1.25)
# Over the runs of a campaign, no sweep needed.
MIN_RUNS = 5
SAME = 1e-3  # largest / smallest - 1 of what counts as a constant
RATIO_MUST_MOVE = math.log(1.5)  # of two columns, or a time, as predicted
# Columns that are one figure by definition: a single batch ends with its last request, tokens count both ways.
ONE_FIGURE = (("e2e_s_", "duration_s"), ("output_tok_per_s", "total_tok_per_s"))
TIMES = ("ttft", "tpot", "itl", "e2e", "duration")


@dataclass(frozen=True)
class _Dead:
    """A curve on one side that stands still. must: how far it had to move, as a factor."""

    curve: Curve
    side: str
    value: float
    moved: float
    must: float


def check(evidence: Evidence) -> Iterator[Finding]:
    """F5 for both sides of the comparison."""
    groups: dict[tuple, list[_Dead]] = {}
    for curve in curves_of(evidence):
        if curve.metric.startswith("ttft") and curve.axis == "output_tok":
            continue  # what follows a first token does not move it
        noise = evidence.noise.of(curve.metric)
        for found in (_still(curve, "measured", noise), None if evidence.own else _still(curve, "simulated", 0.0)):
            if found is not None:
                r = curve.cases[0].record
                groups.setdefault((found.side, r.source, r.gpu, r.campaign, curve.metric, curve.axis), []).append(found)
    still = [_still_finding(members) for members in groups.values()]
    yield from still
    known = [(finding.metrics, set(finding.runs)) for finding in still]
    for cases in evidence.campaigns().values():
        for finding in _constants(evidence, cases):
            if not any(finding.metrics == metrics and runs.issuperset(finding.runs) for metrics, runs in known):
                yield finding


def _still(curve: Curve, side: str, noise: float) -> _Dead | None:
    """Only points with a floor or a prediction: without one nothing says what must move."""
    known = np.isfinite(getattr(curve, side)) & np.isfinite(curve.expected)
    if len(np.unique(curve.x[known])) < 3:
        return None
    curve = curve.at(known)
    y = getattr(curve, side)
    moved = math.log(y.max() / y.min())
    if moved > max(noise, STILL):
        return None
    must, least = _must_move(curve, y), MUST_MOVE
    if not curve.metric.startswith(TIMES):
        least = MUST_MOVE_PREDICTED
    elif moved == 0.0:
        least = MUST_MOVE_EQUAL
    # Equal to all digits is no noise, however noisy repeats are.
    if must < max(least, 0.0 if moved <= STILL else NOISES * noise):
        return None
    return _Dead(curve, side, float(np.median(y)), math.exp(moved), math.exp(must))


def _must_move(curve: Curve, y: np.ndarray) -> float:
    """How far the figure has to move along the curve, as a logarithm.

    A time holds the floor's bytes and operations and whatever else: if the rest is the same all along, it moves by the
    floor's own movement in seconds. Other figures: as far as predicted.
    """
    if curve.metric.startswith(TIMES):
        if not np.isfinite(curve.floor).all():
            return 0.0
        return math.log1p(float(np.ptp(curve.floor) / np.median(y)))
    return math.log(curve.expected.max() / curve.expected.min())


def _still_finding(members: Sequence[_Dead]) -> Finding:
    worst = max(members, key=lambda dead: dead.must / dead.moved)
    curve = worst.curve
    flat = "all digits" if worst.moved == 1.0 else f"{100 * (worst.moved - 1):.2g} %"
    time = curve.metric.startswith(TIMES)
    return Finding(
        check="dead.stands_still",
        layer="definitions",
        fault="F5",
        also=("F9",),
        severity="fail",
        confidence="likely",
        runs=tuple(dict.fromkeys(run for dead in members for run in dead.curve.ids())),
        metrics=(curve.metric,),
        says=(
            f"the {worst.side} {curve.title} stays at {figure(curve.metric, worst.value)} within {flat} over "
            f"{curve.axis} from "
            f"{curve.x[0]:g} to {curve.x[-1]:g}, where {'the bytes and operations' if time else 'the prediction'} must "
            f"move it {worst.must:.2f}-fold"
        ),
        evidence={
            "worst_run": curve.cases[-1].id,
            "sweeps": len(members),
            "value": worst.value,
            "moved_fold": worst.moved,
            "must_move_fold": worst.must,
            "bound": "1 + (largest - smallest floor) / value" if time else "largest / smallest prediction",
        },
        next="find where this figure is computed: a constant, a default, a sensor that was not read, a launch floor",
    )


def _constants(evidence: Evidence, cases: Sequence[Case]) -> Iterator[Finding]:
    """Columns of a campaign that are constant, or a constant times another column, across configurations."""
    sides = ("measured",) if evidence.own else ("measured", "simulated")
    for side in sides:
        table, expected = _tables(cases, side)
        alive = (np.isfinite(table) & np.isfinite(expected)).sum(axis=0) >= MIN_RUNS
        names = [i for i in range(len(CURVE_METRICS)) if alive[i]]
        for i in names:
            least = RATIO_MUST_MOVE if CURVE_METRICS[i].startswith(TIMES) else MUST_MOVE_PREDICTED
            yield from _constant(cases, side, (i,), table[:, i], expected[:, i], least)
        for i, j in combinations(names, 2):
            if any(CURVE_METRICS[i].startswith(one) and CURVE_METRICS[j] == other for one, other in ONE_FIGURE):
                continue
            ratio, predicted = table[:, i] / table[:, j], expected[:, i] / expected[:, j]
            yield from _constant(cases, side, (i, j), ratio, predicted, RATIO_MUST_MOVE)


def _tables(cases: Sequence[Case], side: str) -> tuple[np.ndarray, np.ndarray]:
    """(one side, our prediction) of every metric, shape (cases, metrics); nan for what is not known."""
    records = [case.record if side == "measured" else case.simulated for case in cases]
    table = [[getattr(record, name, None) or math.nan for name in CURVE_METRICS] for record in records]
    values = [case.prediction.outcome.values for case in cases]
    expected = [[of.get(name) or math.nan for name in CURVE_METRICS] for of in values]
    return np.array(table, dtype=float), np.array(expected, dtype=float)


def _constant(
    cases: Sequence[Case], side: str, columns: tuple[int, ...], y: np.ndarray, expected: np.ndarray, must: float
) -> Iterator[Finding]:
    known = np.isfinite(y) & np.isfinite(expected)
    if known.sum() < MIN_RUNS or not y[known].max() <= (1.0 + SAME) * y[known].min():
        return
    moves = math.log(expected[known].max() / expected[known].min())
    if moves < must:
        return
    names = [CURVE_METRICS[i] for i in columns]
    chosen = [case for case, keep in zip(cases, known) if keep]
    what = f"{names[0]} is" if len(names) == 1 else f"{names[0]} / {names[1]} is"
    value = float(np.median(y[known]))
    yield Finding(
        check="dead.constant" if len(names) == 1 else "dead.constant_ratio",
        layer="definitions",
        fault="F5",
        severity="fail",
        confidence="likely",
        runs=tuple(case.id for case in chosen),
        metrics=tuple(names),
        says=(
            f"{side} {what} {value:.6g} in all {len(chosen)} runs of {chosen[0].record.source} on "
            f"{chosen[0].record.gpu}, across configurations over which it is predicted to move "
            f"{math.exp(moves):.1f}-fold"
        ),
        evidence={
            "value": value,
            "runs": len(chosen),
            "predicted_fold": math.exp(moves),
            "bound": f"largest / smallest <= {1 + SAME}",
        },
        next="find the script that writes this column: one of the two was never measured"
        if len(names) == 2
        else "find where this figure is computed: a constant, a default, a sensor that was not read",
    )
