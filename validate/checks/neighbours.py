"""One run far off the runs beside it: the same configuration with a little more or less of one thing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from calibration.points import QUEUED_TTFT_SD
from validate.cases import Case, Evidence
from validate.checks.trust import fitted_on_gpu, slack
from validate.curves import Curve, curves_of, is_queued
from validate.finding import Finding
from validate.wording import counted, figure

HALF_WINDOW = 3  # runs on either side that predict the one between them
MIN_A_SIDE = 2  # one neighbour alone cannot be told from an outlier
MIN_JUDGED = 3  # others whose scatter is known
LEAST_SCATTER = 1e-3  # figures of a table are rounded: no scatter is smaller
# How far off counts: in units of the scatter of the other runs around their own neighbours, and at least so much.
# Steps of kernels (tiles, waves, recorded batch sizes) move neighbours by 8 to 20 % in clean sweeps (measured here);
# the two labelled cases are 1.3 and 9 times their neighbours.
MIN_SCATTERS = 3.0
MIN_LOG = math.log(1.2)
MIN_LOG_ALONE = math.log(1.5)  # where no prediction, or none fitted on this GPU, says how the curve should bend
MIN_LOG_QUEUED = 3.0 * QUEUED_TTFT_SD  # first tokens behind other requests
# Whole sweeps, their ends included: a time over its prediction against the rest of the sweep, in units of the scatter
# of such figures in the campaign. Times per token of clean runs stay within 1.45 of it and other times within 1.96
# (measured here), those of slow machines stand at 1.5 to 2.2.
SWEEP_POINTS = 4
MIN_LOG_PER_TOKEN, MIN_LOG_TIME = math.log(1.5), math.log(2.0)
MIN_CAMPAIGN_SCATTERS = 8.0
PER_TOKEN = ("tpot_s", "itl_s")
REFUSED_FROM = math.log(3.0)  # no step of a kernel and no clock makes a factor of three
METRICS = (
    "ttft_s_mean", "ttft_s_median", "tpot_s_mean", "tpot_s_median", "itl_s_mean", "itl_s_median", "e2e_s_mean",
    "e2e_s_median", "output_tok_per_s", "duration_s", "power_w",
)  # fmt: skip


@dataclass(frozen=True)
class _Off:
    """A run off its neighbours. off: log(measured / what the neighbours say); scatters: the same in their scatter."""

    case: Case
    metric: str
    axis: str
    x: float
    value: float
    said: float
    below: float
    above: float
    off: float
    scatters: float


def check(evidence: Evidence) -> Iterator[Finding]:
    """Runs that neither their neighbours nor the prediction's own curve explain; F9."""
    groups: dict[tuple, dict[tuple[str, str], _Off]] = {}
    curves = list(curves_of(evidence, METRICS))
    along = [
        off
        for curve in curves
        for off in off_neighbours(curve, evidence.noise.of(curve.metric), fitted_on_gpu(evidence, curve.cases))
    ]
    for found in [*along, *off_sweeps(curves, evidence)]:
        r = found.case.record
        group = groups.setdefault((r.source, r.gpu, r.model, found.axis), {})
        known = group.get((found.case.id, found.metric))
        if known is None or found.scatters > known.scatters:
            group[found.case.id, found.metric] = found
    for group in groups.values():
        far = {run for (run, _), found in group.items() if abs(found.off) >= REFUSED_FROM}
        for severity, chosen in (("fail", True), ("warn", False)):
            members = [found for (run, _), found in group.items() if (run in far) is chosen]
            if members:
                yield _finding(evidence, members, severity)


def off_neighbours(curve: Curve, noise: float, known: bool = True) -> list[_Off]:
    """The runs of a curve that are off, the farthest first; each is left out before the next is looked for.

    noise: relative, of repeats. known: whether the prediction was fitted on this GPU, so that its bends are too.
    """
    out: list[_Off] = []
    while True:
        found = _farthest(curve, noise, known)
        if found is None:
            return out
        index, off = found
        out.append(off)
        curve = curve.at(np.arange(len(curve.x)) != index)


def off_sweeps(curves: list[Curve], evidence: Evidence) -> list[_Off]:
    """Times that leave the rest of their sweep, in units of the campaign's own scatter; not those of queues."""
    campaigns: dict[tuple, list[tuple[Curve, np.ndarray]]] = {}
    for curve in curves:
        if "_s_" not in curve.metric or len(curve.x) < SWEEP_POINTS or is_queued(curve):
            continue
        ratio = np.log(curve.measured / curve.expected)
        if np.isfinite(ratio).all():
            r = curve.cases[0].record
            key = (r.source, r.gpu, r.engine, r.campaign, curve.metric, curve.axis)
            campaigns.setdefault(key, []).append((curve, ratio - others_median(ratio)))
    out = []
    for (*_, metric, _), members in campaigns.items():
        scatter = 1.4826 * float(np.median(np.abs(np.concatenate([off for _, off in members]))))
        least = max(
            MIN_LOG_PER_TOKEN if metric.startswith(PER_TOKEN) else MIN_LOG_TIME, MIN_CAMPAIGN_SCATTERS * scatter
        )
        for curve, off in members:
            far = np.flatnonzero(np.abs(off) >= max(least, slack(evidence, curve.cases, metric)))
            out += [_of_sweep(curve, i, float(off[i]), scatter) for i in far]
    return out


def others_median(values: np.ndarray) -> np.ndarray:
    """For each of n >= 2 values the median of the others, shape (n,)."""
    order = np.argsort(values, kind="stable")
    ranked, rank = values[order], np.argsort(order, kind="stable")
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2  # of the n - 1 others
    return (ranked[low + (rank <= low)] + ranked[high + (rank <= high)]) / 2.0


def _of_sweep(curve: Curve, i: int, off: float, scatter: float) -> _Off:
    value, last = float(curve.measured[i]), len(curve.x) - 1
    below, above = (float(curve.measured[j]) for j in (max(i - 1, 0), min(i + 1, last)))
    return _Off(
        curve.cases[i], curve.metric, curve.axis, float(curve.x[i]), value, value / math.exp(off), below, above, off,
        abs(off) / max(scatter, LEAST_SCATTER),
    )  # fmt: skip


def _farthest(curve: Curve, noise: float, known: bool) -> tuple[int, _Off] | None:
    x, y = np.log(curve.x), np.log(curve.measured)
    residual = off_line(x, y)
    bent = y - np.log(curve.expected)
    against = off_line(x, bent)
    alone = ~np.isfinite(against)
    # The smaller of the two: a curve that bends is no outlier, nor is a bend of the prediction.
    agree = np.where(np.sign(residual) == np.sign(against), np.sign(residual), 0.0)
    size = np.where(alone, residual, agree * np.minimum(abs(residual), abs(against)))
    least = np.where(alone, MIN_LOG_ALONE, _least(curve, known))
    candidates = [i for i in np.argsort(-np.abs(np.nan_to_num(size))) if abs(size[i]) >= least[i]]
    for i in candidates:
        keep = np.arange(len(x)) != i
        curved = y if alone[i] else bent
        rest = off_line(x[keep], curved[keep])
        if np.isfinite(rest).sum() < MIN_JUDGED:
            continue
        scatter = max(1.4826 * float(np.nanmedian(np.abs(rest))), noise, LEAST_SCATTER)
        if abs(size[i]) >= MIN_SCATTERS * scatter:
            off = float(residual[i] if alone[i] else against[i])
            value = float(curve.measured[i])
            return i, _Off(
                curve.cases[i], curve.metric, curve.axis, float(curve.x[i]), value, value / math.exp(off),
                float(curve.measured[i - 1]), float(curve.measured[i + 1]), off, abs(off) / scatter,
            )  # fmt: skip
    return None


def _least(curve: Curve, known: bool) -> float:
    if is_queued(curve):
        return MIN_LOG_QUEUED
    return MIN_LOG if known else MIN_LOG_ALONE


def off_line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y minus what the neighbours of each point say, shape (n,); x ascending, both logarithms.

    A Theil-Sen line through up to three points on either side. nan where fewer than two are known on either: nothing is
    extrapolated.
    """
    pad = np.full(HALF_WINDOW, np.nan)
    around = [i for i in range(2 * HALF_WINDOW + 1) if i != HALF_WINDOW]
    dx = sliding_window_view(np.concatenate([pad, x, pad]), 2 * HALF_WINDOW + 1)[:, around] - x[:, None]
    near = sliding_window_view(np.concatenate([pad, y, pad]), 2 * HALF_WINDOW + 1)[:, around]
    dx = np.where(np.isfinite(near), dx, np.nan)
    left, right = np.isfinite(near[:, :HALF_WINDOW]).sum(axis=1), np.isfinite(near[:, HALF_WINDOW:]).sum(axis=1)
    judged = (left >= MIN_A_SIDE) & (right >= MIN_A_SIDE) & np.isfinite(y)
    out = np.full(len(x), np.nan)
    if judged.any():
        dx, near = dx[judged], near[judged]
        a, b = np.triu_indices(2 * HALF_WINDOW, 1)
        run = dx[:, b] - dx[:, a]
        slopes = np.where(np.abs(run) > 1e-9, (near[:, b] - near[:, a]) / np.where(run == 0.0, 1.0, run), np.nan)
        flat = ~np.isfinite(slopes).any(axis=1)  # repeats of one x only
        slopes[flat, 0] = 0.0
        slope = np.nanmedian(slopes, axis=1)
        out[judged] = y[judged] - np.nanmedian(near - slope[:, None] * dx, axis=1)
    return out


UNIT_FACTOR = 8.0  # from here on a single figure may be in another unit


def _finding(evidence: Evidence, members: list[_Off], severity: str) -> Finding:
    worst = max(members, key=lambda found: abs(found.off))
    chosen = {found.case.id for found in members}
    runs = tuple(case.id for case in evidence.cases if case.id in chosen)
    metrics = tuple(name for name in METRICS if any(found.metric == name for found in members))
    factor = math.exp(worst.off)
    record = worst.case.record
    many = f"{counted(len(runs), 'run')} {'are' if len(runs) > 1 else 'is'}"
    value, below, above = (figure(worst.metric, x) for x in (worst.value, worst.below, worst.above))
    return Finding(
        check="neighbours.off_the_curve",
        layer="validity",
        fault="F9",
        also=("F2", "F1") if max(factor, 1.0 / factor) >= UNIT_FACTOR else ("F1",),  # a unit; another setting
        severity=severity,
        confidence="likely" if severity == "fail" or worst.scatters >= 2 * MIN_SCATTERS else "possible",
        runs=runs,
        metrics=metrics,
        says=(
            f"{record.model.split('/')[-1]} on {record.gpu}: {many} off the neighbours along {worst.axis}; "
            f"{worst.metric} = {value} at {worst.axis} = {worst.x:g} stands between {below} and {above}, "
            f"{factor:.2f} times what "
            f"they say, {worst.scatters:.0f} times as far off as they scatter themselves"
        ),
        evidence={
            "worst_run": worst.case.id,
            f"measured_{worst.metric}": worst.value,
            f"said_by_neighbours_{worst.metric}": worst.said,
            "factor": factor,
            "off_in_scatters": worst.scatters,
            "bound": f"|log| >= {MIN_LOG:.2f} and >= {MIN_SCATTERS} x scatter of the others around their neighbours",
        },
        next="repeat this run; look for a warm-up, a throttled clock or another job in its log",
    )
