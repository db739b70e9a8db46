"""Curves over load beside each other: where a latency turns up, where a rate stops rising, which length is slower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from validate.cases import Evidence
from validate.curves import Curve

LATENCIES = (
    "ttft_s_mean", "ttft_s_median", "tpot_s_mean", "tpot_s_median", "itl_s_mean", "itl_s_median", "e2e_s_mean",
    "e2e_s_median",
)  # fmt: skip
NOISES = 3.0  # of repeats, that a difference has to exceed
# Knee: the load where a latency is twice that of the lightest load (TAXONOMY, S1).
KNEE, MAX_KNEE_RATIO = 2.0, 2.5
NO_KNEE = 1.3  # a latency that has risen by less at the heaviest load has no knee in sight
# Plateau: d log(rate) / d log(load) over the last step: below one it is there, above the other it is not.
FLAT, STEEP = 0.1, 0.5
MIN_ORDER = 0.15  # curves at least so far apart on both sides (log) before their order counts


@dataclass(frozen=True)
class Hit:
    """A curve on which something shows. size: in logs, to find the worst; text: a clause with the numbers."""

    curve: Curve
    runs: tuple[str, ...]
    worst: str
    size: float
    text: str
    evidence: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Means:
    """A curve with one point for each x (geometric means); only what has a simulated figure."""

    x: np.ndarray
    measured: np.ndarray
    simulated: np.ndarray
    expected: np.ndarray
    floor: np.ndarray


def knee(x: np.ndarray, y: np.ndarray) -> float:
    """The load from which on y is twice its first value, on a line of logarithms; inf where it is not at the end."""
    below = np.flatnonzero(y < KNEE * y[0])
    i = int(below[-1]) + 1
    if i == len(y):
        return math.inf
    return float(np.exp(np.interp(math.log(KNEE * y[0]), np.log(y[i - 1 : i + 1]), np.log(x[i - 1 : i + 1]))))


def knee_hit(curve: Curve, means: Means) -> Hit | None:
    """Knees that lie apart, or a knee on one side only."""
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
    return Hit(
        curve, ends(curve, means), curve.ids(curve.x == means.x[-1])[0], either[1] - either[0],
        f"{curve.title} is twice its unloaded value from a load of {_load(measured)} on as measured, "
        f"{_load(simulated)} as simulated",
        {"measured_knee": measured, "simulated_knee": simulated, "measured_unloaded": float(means.measured[0]),
         "simulated_unloaded": float(means.simulated[0]), "bound": f"knees within a factor of {MAX_KNEE_RATIO}"},
    )  # fmt: skip


def _load(value: float) -> str:
    return "beyond the sweep" if math.isinf(value) else f"{value:.3g}"


def plateau_hit(curve: Curve, means: Means) -> Hit | None:
    """A rate that has stopped rising on one side and not on the other."""
    span = math.log(means.x[-1] / means.x[-2])
    gains = [math.log(y[-1] / y[-2]) / span for y in (means.measured, means.simulated)]
    if not (min(gains) < FLAT and max(gains) > STEEP):
        return None
    sides = ("measured", "simulated") if gains[0] < gains[1] else ("simulated", "measured")
    return Hit(
        curve, ends(curve, means), curve.ids(curve.x == means.x[-1])[0], max(gains) - min(gains),
        f"the {sides[0]} {curve.title} has its plateau at {means.x[-2]:g}, the {sides[1]} one still rises with the "
        f"load to the power {max(gains):.2f}",
        {"measured_exponent": gains[0], "simulated_exponent": gains[1], "measured_maximum": float(means.measured.max()),
         "simulated_maximum": float(means.simulated.max()),
         "bound": f"not below {FLAT} on one side and above {STEEP} on the other"},
    )  # fmt: skip


def order_hits(curves: Sequence[tuple[Curve, Means]], evidence: Evidence) -> list[Hit]:
    """Pairs of lengths of one deployment whose curves over load lie the other way round."""
    groups: dict[tuple, list[tuple[Curve, Means]]] = {}
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


def _order(one: tuple[Curve, Means], other: tuple[Curve, Means], evidence: Evidence) -> Hit | None:
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
    return Hit(
        a, runs, runs[0], abs(measured - simulated),
        f"{a.title} with {first} is {math.exp(measured):.2f} times that with {second} as measured, "
        f"{math.exp(simulated):.2f} times as simulated",
        {"measured_ratio": math.exp(measured), "simulated_ratio": math.exp(simulated),
         "bound": f"same order where both are >= {math.exp(least):.2f} apart"},
    )  # fmt: skip


def ends(curve: Curve, means: Means) -> tuple[str, ...]:
    """The runs at both ends: a shape is no property of the runs in between."""
    return curve.ids(np.isin(curve.x, (means.x[0], means.x[-1])))
