"""The shape of curves over load, batch and length: direction, drift, knee, plateau, order. Measured against simulated.

A level may be off, that is the error layer's subject; here only what cannot be mended by a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, theilslopes

from calibration.points import QUEUED_TTFT_SD
from validate.cases import Evidence
from validate.checks.load_curves import LATENCIES, NOISES, Hit, Means, ends, knee_hit, order_hits, plateau_hit
from validate.checks.trust import fitted_on_gpu, slack
from validate.curves import Curve, curves_of, is_queued
from validate.finding import Finding
from validate.sweeps import MIN_POINTS
from validate.wording import figure

RATES = ("output_tok_per_s", "total_tok_per_s")
METRICS = (*LATENCIES, *RATES, "energy_j_per_output_tok")
# Direction: one curve falls by so much (and by three times the noise) where the other rises by so much. The labelled
# B200 rows fall by more than 5 %; none of 274 clean H100 rows do (TAXONOMY, MLE-HOST).
MIN_CONTRARY = 0.05
# Drift of log(simulated / measured) from one end of a sweep to the other. Clean sweeps, measured here: up to 1.35 times
# over batch, but first tokens behind others 1.6 times; up to 1.9 times over lengths for one model that resists.
DRIFT_POINTS, MIN_TAU = 4, 0.8
MAX_DRIFT = {"batch": math.log(1.6), "input_tok": math.log(2.0), "output_tok": math.log(2.0)}
MAX_DRIFT_QUEUED = math.log(2.0)


def check(evidence: Evidence) -> Iterator[Finding]:
    """F7 for shapes that differ, F9 where the measured speed itself falls and rises again."""
    curves = [
        (curve, means)
        for curve in curves_of(evidence, METRICS)
        if _has_shape(curve) and len((means := _means(curve)).x) >= MIN_POINTS
    ]
    yield from _grouped(_DIRECTION, [hit for c, m in curves if (hit := _direction(c, m, evidence))])
    if not evidence.own:
        yield from _grouped(_THEIRS, [hit for c, m in curves if (hit := _their_direction(c, m, evidence))])
    curves = [(c, m) for c, m in curves if _beyond_slack(c, m, evidence)]
    yield from _grouped(_DRIFT, [hit for c, m in curves if (hit := _drift(c, m))])
    loaded = [(c, m) for c, m in curves if c.axis == "batch"]
    yield from _grouped(_KNEE, [hit for c, m in loaded if c.metric in LATENCIES and (hit := knee_hit(c, m))])
    yield from _grouped(_PLATEAU, [hit for c, m in loaded if c.metric in RATES and (hit := plateau_hit(c, m))])
    yield from _grouped(_ORDER, order_hits(loaded, evidence))


def _has_shape(curve: Curve) -> bool:
    """First tokens do not depend on what is written after them; power over a whole run measures the sampling too."""
    if curve.metric.startswith("ttft"):
        return curve.axis != "output_tok"
    return not (curve.metric.startswith("energy") and curve.cases[0].record.flagged("whole_run_power"))


def _beyond_slack(curve: Curve, means: Means, evidence: Evidence) -> bool:
    """Whether both curves differ in shape by more than one side's own intervals let them."""
    return float(np.ptp(np.log(means.simulated / means.measured))) > slack(evidence, curve.cases, curve.metric)


def _means(curve: Curve) -> Means:
    known = curve.simulated_runs & np.isfinite(curve.expected)
    x, place = np.unique(curve.x[known], return_inverse=True)
    count = np.bincount(place, minlength=len(x))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.exp(np.bincount(place, np.log(values[known]), minlength=len(x)) / count)

    return Means(x, mean(curve.measured), mean(curve.simulated), mean(curve.expected), mean(curve.floor))


def _contrary(curve: np.ndarray, others: Sequence[np.ndarray], least: float) -> int | None:
    """The step i -> i + 1 at which a curve goes against all the others most; None where it does not."""
    step = np.diff(np.log(curve))
    against = np.abs(step) >= least
    for other in others:
        theirs = np.diff(np.log(other))
        against &= (np.sign(theirs) == -np.sign(step)) & (np.abs(theirs) >= MIN_CONTRARY)
    return int(np.argmax(np.where(against, np.abs(step), 0.0))) if against.any() else None


def _direction(curve: Curve, means: Means, evidence: Evidence) -> Hit | None:
    """The measured curve turns where the physics does not; the run that is off, of the two.

    On a GPU that no run was fitted on, bytes and operations have to turn the other way, too.
    """
    least = max(MIN_CONTRARY, NOISES * evidence.noise.of(curve.metric))
    if is_queued(curve):
        least = max(least, NOISES * QUEUED_TTFT_SD)
    physics = [means.expected] if fitted_on_gpu(evidence, curve.cases) else [means.expected, means.floor]
    i = _contrary(means.measured, physics, least)
    if i is None:
        return None
    off = np.log(means.measured / means.expected)
    off = np.abs(off - np.median(off))
    odd = means.x[i] if off[i] > off[i + 1] else means.x[i + 1]
    return _turn(curve, means, i, means.measured, "measured", curve.ids(curve.x == odd))


def _their_direction(curve: Curve, means: Means, evidence: Evidence) -> Hit | None:
    """The simulated curve turns where neither the measurement nor our own physics does."""
    i = _contrary(means.simulated, [means.measured, means.expected], MIN_CONTRARY)
    if i is None:
        return None
    return _turn(curve, means, i, means.simulated, "simulated", curve.ids(np.isin(curve.x, means.x[i : i + 2])))


def _turn(curve: Curve, means: Means, i: int, y: np.ndarray, side: str, runs: tuple[str, ...]) -> Hit:
    change, expected = (float(v[i + 1] / v[i] - 1.0) for v in (y, means.expected))
    return Hit(
        curve, runs, runs[0], abs(math.log(y[i + 1] / y[i])),
        f"{side} {curve.title} goes from {figure(curve.metric, y[i])} to {figure(curve.metric, y[i + 1])} "
        f"({100 * change:+.0f} %) as {curve.axis} goes from {means.x[i]:g} to {means.x[i + 1]:g}, where "
        f"{100 * expected:+.0f} % is expected",
        {f"{side}_change": change, "expected_change": expected, "x_from": float(means.x[i]),
         "x_to": float(means.x[i + 1]), "bound": f"opposite directions, each by >= {MIN_CONTRARY}"},
    )  # fmt: skip


def _drift(curve: Curve, means: Means) -> Hit | None:
    """A ratio of simulated to measured that grows or shrinks all along the sweep."""
    if len(means.x) < DRIFT_POINTS or means.x[-1] <= means.x[0]:
        return None
    x, ratio = np.log(means.x), np.log(means.simulated / means.measured)
    if np.ptp(ratio) < min(MAX_DRIFT.values()):  # most sweeps: no need to rank anything
        return None
    drift = float(theilslopes(ratio, x)[0] * (x[-1] - x[0]))
    limit = MAX_DRIFT_QUEUED if curve.metric.startswith("ttft") else MAX_DRIFT[curve.axis]
    if abs(drift) < limit or abs(kendalltau(x, ratio).statistic) < MIN_TAU:
        return None
    first, last = math.exp(ratio[0]) - 1.0, math.exp(ratio[-1]) - 1.0
    return Hit(
        curve, ends(curve, means), curve.ids(curve.x == means.x[-1])[0], abs(drift),
        f"the error of {curve.title} goes from {100 * first:+.0f} % at {curve.axis} = {means.x[0]:g} to "
        f"{100 * last:+.0f} % at {means.x[-1]:g}",
        {"error_at_start": first, "error_at_end": last, "drift_log": drift,
         "bound": f"|drift of log(simulated / measured)| < {limit:.2f} or |Kendall tau| < {MIN_TAU}"},
    )  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    check: str
    fault: str
    also: tuple[str, ...]
    what: Callable[[int], str]
    next: str


_DIRECTION = _Kind(
    "shape.direction", "F9", ("F7",), lambda n: f"speed falls and rises again in {n} sweep{'s' * (n > 1)}",
    "repeat the runs on both sides of the turn; look for other work on the machine, throttling or another kernel",
)  # fmt: skip
_THEIRS = _Kind(
    "shape.simulated_direction", "F7", (),
    lambda n: f"a simulated curve turns the other way in {n} sweep{'s' * (n > 1)}",
    "look at what the simulator switches between these two points: a kernel table, a batch limit, a wave of tiles",
)  # fmt: skip
_DRIFT = _Kind(
    "shape.drift", "F7", (), lambda n: f"the error drifts along {n} sweep{'s' * (n > 1)}",
    "a drift in load is scheduling or queueing, one in context is KV bytes, one in output length a cost per step",
)  # fmt: skip
_KNEE = _Kind(
    "shape.knee", "F7", ("F1",), lambda n: f"the knees of {n} curve{'s' * (n > 1)} lie apart",
    "compare max_num_seqs, the KV capacity and the arrival process of both sides",
)  # fmt: skip
_PLATEAU = _Kind(
    "shape.plateau", "F7", ("F1", "F9"), lambda n: f"{n} curve{'s' * (n > 1)} saturate on one side only",
    "look for a limit that only one side has: KV capacity, max_num_seqs, the client, an efficiency constant",
)  # fmt: skip
_ORDER = _Kind(
    "shape.order", "F7", ("F8",), lambda n: f"{n} pair{'s' * (n > 1)} of lengths stand in another order",
    "check the lengths of both sides, cached tokens, and what the simulator lets depend on context",
)  # fmt: skip


def _grouped(kind: _Kind, hits: Sequence[Hit]) -> Iterator[Finding]:
    """One finding for each campaign and metric; the same curve under two names counts once in the sentence."""
    groups: dict[tuple, list[Hit]] = {}
    for hit in hits:
        r = hit.curve.cases[0].record
        groups.setdefault((r.source, r.gpu, r.campaign, hit.curve.metric, hit.curve.axis), []).append(hit)
    for (*_, metric, _), members in groups.items():
        worst = max(members, key=lambda hit: hit.size)
        yield Finding(
            check=kind.check,
            layer="shape",
            fault=kind.fault,
            also=kind.also,
            severity="warn",
            confidence="likely" if len(members) > 1 or worst.size >= math.log(2.0) else "possible",
            runs=tuple(dict.fromkeys(run for hit in members for run in hit.runs)),
            metrics=(metric,),
            says=f"{kind.what(len(members))}: {worst.text}",
            evidence={"worst_run": worst.worst, "sweeps": len(members), **worst.evidence},
            next=kind.next,
        )
