"""The shape of curves over load, batch and length: direction, drift, knee, plateau, order. Measured against simulated.

A level may be off, that is the error layer's subject; here only what cannot be mended by a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import kendalltau, theilslopes

from validate.cases import Evidence
from validate.curves import Curve, curves_of
from validate.finding import Finding
from validate.sweeps import MIN_POINTS

LATENCIES = (
    "ttft_s_mean", "ttft_s_median", "tpot_s_mean", "tpot_s_median", "itl_s_mean", "itl_s_median", "e2e_s_mean",
    "e2e_s_median",
)  # fmt: skip
RATES = ("output_tok_per_s", "total_tok_per_s")
METRICS = (*LATENCIES, *RATES, "energy_j_per_output_tok")
# Direction: one curve falls by so much (and by three times the noise) where the other rises by so much. The labelled
# B200 rows fall by more than 5 %; none of 274 clean H100 rows do (TAXONOMY, MLE-HOST).
MIN_CONTRARY, NOISES = 0.05, 3.0
# Drift of log(simulated / measured) from one end of a sweep to the other. Clean sweeps, measured here: up to 1.35 times
# over batch, but first tokens behind others 1.6 times; up to 1.9 times over lengths for one model that resists.
DRIFT_POINTS, MIN_TAU = 4, 0.8
MAX_DRIFT = {"batch": math.log(1.6), "input_tok": math.log(2.0), "output_tok": math.log(2.0)}
MAX_DRIFT_QUEUED = math.log(2.0)
# Knee: the load where a latency is twice that of the lightest load (TAXONOMY, S1).
KNEE, MAX_KNEE_RATIO = 2.0, 2.5
NO_KNEE = 1.3  # a latency that has risen by less at the heaviest load has no knee in sight
# Plateau: d log(rate) / d log(load) over the last step: below one it is there, above the other it is not.
FLAT, STEEP = 0.1, 0.5
MIN_ORDER = 0.15  # curves at least so far apart on both sides (log) before their order counts


@dataclass(frozen=True)
class _Hit:
    """A curve on which something shows. size: in logs, to find the worst; text: a clause with the numbers."""

    curve: Curve
    runs: tuple[str, ...]
    worst: str
    size: float
    text: str
    evidence: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Means:
    """A curve with one point for each x (geometric means); only what has a simulated figure."""

    x: np.ndarray
    measured: np.ndarray
    simulated: np.ndarray
    expected: np.ndarray


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
    yield from _grouped(_DRIFT, [hit for c, m in curves if (hit := _drift(c, m))])
    loaded = [(c, m) for c, m in curves if c.axis == "batch"]
    yield from _grouped(_KNEE, [hit for c, m in loaded if c.metric in LATENCIES and (hit := _knee(c, m))])
    yield from _grouped(_PLATEAU, [hit for c, m in loaded if c.metric in RATES and (hit := _plateau(c, m))])
    yield from _grouped(_ORDER, _orders(loaded, evidence))


def _has_shape(curve: Curve) -> bool:
    """First tokens do not depend on what is written after them; power over a whole run measures the sampling too."""
    if curve.metric.startswith("ttft"):
        return curve.axis != "output_tok"
    return not (curve.metric.startswith("energy") and curve.cases[0].record.flagged("whole_run_power"))


def _means(curve: Curve) -> _Means:
    known = curve.simulated_runs & np.isfinite(curve.expected)
    x, place = np.unique(curve.x[known], return_inverse=True)
    count = np.bincount(place, minlength=len(x))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.exp(np.bincount(place, np.log(values[known]), minlength=len(x)) / count)

    return _Means(x, mean(curve.measured), mean(curve.simulated), mean(curve.expected))


def _contrary(curve: np.ndarray, others: Sequence[np.ndarray], least: float) -> int | None:
    """The step i -> i + 1 at which a curve goes against all the others most; None where it does not."""
    step = np.diff(np.log(curve))
    against = np.abs(step) >= least
    for other in others:
        theirs = np.diff(np.log(other))
        against &= (np.sign(theirs) == -np.sign(step)) & (np.abs(theirs) >= MIN_CONTRARY)
    return int(np.argmax(np.where(against, np.abs(step), 0.0))) if against.any() else None


def _direction(curve: Curve, means: _Means, evidence: Evidence) -> _Hit | None:
    """The measured curve turns where the physics does not; the run that is off, of the two."""
    least = max(MIN_CONTRARY, NOISES * evidence.noise.of(curve.metric))
    i = _contrary(means.measured, [means.expected], least)
    if i is None:
        return None
    off = np.log(means.measured / means.expected)
    off = np.abs(off - np.median(off))
    odd = means.x[i] if off[i] > off[i + 1] else means.x[i + 1]
    return _turn(curve, means, i, means.measured, "measured", curve.ids(curve.x == odd))


def _their_direction(curve: Curve, means: _Means, evidence: Evidence) -> _Hit | None:
    """The simulated curve turns where neither the measurement nor our own physics does."""
    i = _contrary(means.simulated, [means.measured, means.expected], MIN_CONTRARY)
    if i is None:
        return None
    return _turn(curve, means, i, means.simulated, "simulated", curve.ids(np.isin(curve.x, means.x[i : i + 2])))


def _turn(curve: Curve, means: _Means, i: int, y: np.ndarray, side: str, runs: tuple[str, ...]) -> _Hit:
    change, expected = (float(v[i + 1] / v[i] - 1.0) for v in (y, means.expected))
    return _Hit(
        curve, runs, runs[0], abs(math.log(y[i + 1] / y[i])),
        f"{side} {curve.title} goes from {y[i]:.4g} to {y[i + 1]:.4g} ({100 * change:+.0f} %) as {curve.axis} goes "
        f"from {means.x[i]:g} to {means.x[i + 1]:g}, where {100 * expected:+.0f} % is expected",
        {f"{side}_change": change, "expected_change": expected, "x_from": float(means.x[i]),
         "x_to": float(means.x[i + 1]), "bound": f"opposite directions, each by >= {MIN_CONTRARY}"},
    )  # fmt: skip


def _drift(curve: Curve, means: _Means) -> _Hit | None:
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
    return _Hit(
        curve, _ends(curve, means), curve.ids(curve.x == means.x[-1])[0], abs(drift),
        f"the error of {curve.title} goes from {100 * first:+.0f} % at {curve.axis} = {means.x[0]:g} to "
        f"{100 * last:+.0f} % at {means.x[-1]:g}",
        {"error_at_start": first, "error_at_end": last, "drift_log": drift,
         "bound": f"|drift of log(simulated / measured)| < {limit:.2f} or |Kendall tau| < {MIN_TAU}"},
    )  # fmt: skip


def knee(x: np.ndarray, y: np.ndarray) -> float:
    """The load from which on y is twice its first value, on a line of logarithms; inf where it is not at the end."""
    below = np.flatnonzero(y < KNEE * y[0])
    i = int(below[-1]) + 1
    if i == len(y):
        return math.inf
    return float(np.exp(np.interp(math.log(KNEE * y[0]), np.log(y[i - 1 : i + 1]), np.log(x[i - 1 : i + 1]))))


def _knee(curve: Curve, means: _Means) -> _Hit | None:
    measured, simulated = knee(means.x, means.measured), knee(means.x, means.simulated)
    if math.isinf(measured) and math.isinf(simulated):
        return None
    late = means.simulated if math.isinf(simulated) else means.measured
    if math.isinf(measured) or math.isinf(simulated):
        if late[-1] > NO_KNEE * late[0]:
            return None
    elif 1.0 / MAX_KNEE_RATIO <= simulated / measured <= MAX_KNEE_RATIO:
        return None
    either = math.log(min(measured, simulated)), math.log(min(max(measured, simulated), 2.0 * means.x[-1]))
    return _Hit(
        curve, _ends(curve, means), curve.ids(curve.x == means.x[-1])[0], either[1] - either[0],
        f"{curve.title} is twice its unloaded value from a load of {_load(measured)} on as measured, "
        f"{_load(simulated)} as simulated",
        {"measured_knee": measured, "simulated_knee": simulated, "measured_unloaded": float(means.measured[0]),
         "simulated_unloaded": float(means.simulated[0]), "bound": f"knees within a factor of {MAX_KNEE_RATIO}"},
    )  # fmt: skip


def _load(value: float) -> str:
    return "beyond the sweep" if math.isinf(value) else f"{value:.3g}"


def _plateau(curve: Curve, means: _Means) -> _Hit | None:
    span = math.log(means.x[-1] / means.x[-2])
    gains = [math.log(y[-1] / y[-2]) / span for y in (means.measured, means.simulated)]
    if not (min(gains) < FLAT and max(gains) > STEEP):
        return None
    sides = ("measured", "simulated") if gains[0] < gains[1] else ("simulated", "measured")
    return _Hit(
        curve, _ends(curve, means), curve.ids(curve.x == means.x[-1])[0], max(gains) - min(gains),
        f"the {sides[0]} {curve.title} has its plateau at {means.x[-2]:g}, the {sides[1]} one still rises with the "
        f"load to the power {max(gains):.2f}",
        {"measured_exponent": gains[0], "simulated_exponent": gains[1], "measured_maximum": float(means.measured.max()),
         "simulated_maximum": float(means.simulated.max()),
         "bound": f"not below {FLAT} on one side and above {STEEP} on the other"},
    )  # fmt: skip


def _orders(curves: Sequence[tuple[Curve, _Means]], evidence: Evidence) -> list[_Hit]:
    """Pairs of lengths of one deployment whose curves over load lie the other way round."""
    groups: dict[tuple, list[tuple[Curve, _Means]]] = {}
    for curve, means in curves:
        setup = curve.cases[0].setup
        if setup is not None and curve.metric in LATENCIES:
            r = curve.cases[0].record
            groups.setdefault((r.source, r.campaign, r.load, setup.deployment, curve.metric), []).append((curve, means))
    out = []
    for members in groups.values():
        for i, one in enumerate(members):
            out += [hit for other in members[i + 1 :] if (hit := _order(one, other, evidence))]
    return out


def _order(one: tuple[Curve, _Means], other: tuple[Curve, _Means], evidence: Evidence) -> _Hit | None:
    (a, a_means), (b, b_means) = one, other
    _, at_a, at_b = np.intersect1d(a_means.x, b_means.x, return_indices=True)
    least = max(MIN_ORDER, NOISES * evidence.noise.of(a.metric))
    apart = [
        np.log(getattr(a_means, side)[at_a] / getattr(b_means, side)[at_b]) for side in ("measured", "simulated")
    ]  # fmt: skip
    if len(at_a) < 2 or np.ptp(np.sign(apart[0])) or np.ptp(np.sign(apart[1])):
        return None  # curves that cross have no order
    measured, simulated = (float(np.median(side)) for side in apart)
    if measured * simulated >= 0.0 or min(abs(measured), abs(simulated)) < least:
        return None
    runs = (*a.ids(np.isin(a.x, a_means.x[at_a[[0, -1]]])), *b.ids(np.isin(b.x, b_means.x[at_b[[0, -1]]])))
    first, second = (f"{c.cases[0].record.input_tok:g}+{c.cases[0].record.output_tok:g} tokens" for c in (a, b))
    return _Hit(
        a, runs, runs[0], abs(measured - simulated),
        f"{a.title} with {first} is {math.exp(measured):.2f} times that with {second} as measured, "
        f"{math.exp(simulated):.2f} times as simulated",
        {"measured_ratio": math.exp(measured), "simulated_ratio": math.exp(simulated),
         "bound": f"same order where both are >= {math.exp(least):.2f} apart"},
    )  # fmt: skip


def _ends(curve: Curve, means: _Means) -> tuple[str, ...]:
    """The runs at both ends: a shape is no property of the runs in between."""
    return curve.ids(np.isin(curve.x, (means.x[0], means.x[-1])))


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


def _grouped(kind: _Kind, hits: Sequence[_Hit]) -> Iterator[Finding]:
    """One finding for each campaign and metric; the same curve under two names counts once in the sentence."""
    groups: dict[tuple, list[_Hit]] = {}
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
