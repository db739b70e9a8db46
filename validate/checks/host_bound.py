"""Runs whose pace was set by the host: time above, power below what the other runs of the same machine show.

Nothing here trusts a prediction's level: a machine whose profile is composed may be off by a constant. What counts is
the contrast within a campaign, of measured / predicted time per token against measured / predicted power.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.checks.trust import fitted_on_gpu
from validate.finding import Finding

TIMES = ("itl_s_median", "tpot_s_median", "tpot_s_mean", "itl_s_mean", "e2e_s_mean")  # the first that a run has
MIN_OUTPUT_TOK = 16  # or an end-to-end time is that of a prompt
MIN_RUNS = 8  # of a campaign, or there is no contrast
# A run waits where its time stands above the campaign's fast quarter and its power below that quarter's, by so much.
# Clean campaigns (measured here): 1.3 times in one of 161 runs, none of them with less power.
SLOWER = 1.3
LESS_POWER = 0.85
CLEARLY_SLOWER, CLEARLY_LESS_POWER = 1.6, 0.75
# On a GPU without a fit of its own, models are off differently, and a time that is predicted too short is predicted
# with too much power. Sound machines then have up to 3 % of clear cases (measured here with other GPUs' calibrations):
# only those count, and only where they put the campaign in doubt.
# A campaign is in doubt where so many of its runs wait and time rises as power falls all over it.
MIN_SHARE, MIN_WAITING = 0.10, 3
MAX_CORRELATION, MAX_P = -0.4, 0.01
# Ten times the prediction: nothing that a cost model leaves out is as large.
FAR = 10.0


@dataclass(frozen=True)
class _Contrast:
    """A campaign's runs with both figures. slower, power: relative to its fast quarter, shape (n,)."""

    cases: tuple[Case, ...]
    time_s: np.ndarray
    floor_s: np.ndarray
    slower: np.ndarray
    power: np.ndarray

    @property
    def waiting(self) -> np.ndarray:
        return (self.slower >= SLOWER) & (self.power <= LESS_POWER)

    @property
    def clear(self) -> np.ndarray:
        return (self.slower >= CLEARLY_SLOWER) & (self.power <= CLEARLY_LESS_POWER)


def check(evidence: Evidence) -> Iterator[Finding]:
    """Waiting runs (likely, or possible one by one), and the whole campaign that they put in doubt (possible); F9."""
    yield from _far(evidence)
    for cases in evidence.campaigns().values():
        contrast = _contrast(cases)
        if contrast is None or not contrast.waiting.any():
            continue
        known = fitted_on_gpu(evidence, cases)
        doubtful = _doubtful(contrast, contrast.waiting if known else contrast.clear)
        if not (doubtful or known):
            continue
        chosen = contrast.waiting if doubtful else contrast.clear
        if chosen.any():
            yield _waiting(contrast, chosen, doubtful)
        if doubtful:
            yield _campaign(cases, contrast)


def _time(record: RunRecord, case: Case) -> tuple[float, float, float] | None:
    """(measured, predicted, floor) of the time per token that says most; None without any."""
    values = case.prediction.outcome.values
    for name in TIMES if (record.output_tok or 0.0) >= MIN_OUTPUT_TOK else TIMES[:-1]:
        measured = getattr(record, name)
        if measured and values.get(name):
            return measured, values[name], case.floor.get(name, math.nan)
    return None


def _contrast(cases: Sequence[Case]) -> _Contrast | None:
    rows = []
    for case in cases:
        time, power = _time(case.record, case), case.prediction.outcome.values.get("power_w")
        if time and power and case.record.power_w:
            rows.append((case, *time, case.record.power_w / power))
    if len(rows) < MIN_RUNS:
        return None
    chosen, *columns = zip(*rows)
    time, predicted, floor, power = (np.array(column, dtype=float) for column in columns)
    ratio = time / predicted
    fast = ratio <= np.quantile(ratio, 0.25)
    return _Contrast(chosen, time, floor, ratio / np.median(ratio[fast]), power / np.median(power[fast]))


def _doubtful(contrast: _Contrast, waiting: np.ndarray) -> bool:
    if waiting.sum() < max(MIN_WAITING, MIN_SHARE * len(contrast.cases)):
        return False
    found = spearmanr(contrast.slower, contrast.power)
    return found.statistic <= MAX_CORRELATION and found.pvalue <= MAX_P


def _waiting(contrast: _Contrast, chosen: np.ndarray, doubtful: bool) -> Finding:
    index = np.flatnonzero(chosen)
    worst = int(index[np.argmax(contrast.slower[index] / contrast.power[index])])
    case, n = contrast.cases[worst], len(index)
    record = case.record
    spread = _fold(contrast.time_s[index]), _fold(contrast.floor_s[index])
    evidence: dict[str, float | str] = {
        "worst_run": case.id,
        "time_against_fast_quarter": float(contrast.slower[worst]),
        "power_against_fast_quarter": float(contrast.power[worst]),
        "measured_time_s": float(contrast.time_s[worst]),
        "floor_time_s": float(contrast.floor_s[worst]),
        "fold_range_of_measured_times": spread[0],
        "fold_range_of_their_floors": spread[1],
        "bound": f"time >= {SLOWER} and power <= {LESS_POWER} of the campaign's fast quarter, both over prediction",
    }
    if record.itl_s_p99 and record.itl_s_median:
        evidence["itl_p99_over_median"] = record.itl_s_p99 / record.itl_s_median
    return Finding(
        check="host_bound.waiting",
        layer="validity",
        fault="F9",
        also=("F7", "F1"),  # steps that are launched one kernel at a time look the same
        severity="fail" if doubtful else "warn",
        confidence="likely" if doubtful else "possible",
        runs=tuple(contrast.cases[i].id for i in index),
        says=(
            f"{n} of {len(contrast.cases)} runs on {record.gpu} look as if they waited for something other than the "
            f"GPU: up to {contrast.slower[index].max():.1f} times the time per token that the fast quarter of the "
            f"campaign leads to expect, at down to {contrast.power[index].min():.2f} of its power; "
            f"{record.model.split('/')[-1]} takes {1e3 * contrast.time_s[worst]:.1f} ms where the data "
            f"sheet's floor is {1e3 * contrast.floor_s[worst]:.1f} ms"
        ),
        evidence=evidence,
        next="look at the host: other jobs, cores per engine, governor, tokenizer threads; compare a run alone",
    )


def _campaign(cases: Sequence[Case], contrast: _Contrast) -> Finding:
    found = spearmanr(contrast.slower, contrast.power)
    worst = int(np.argmax(contrast.slower))
    record, share = contrast.cases[0].record, float(contrast.waiting.mean())
    return Finding(
        check="host_bound.campaign",
        layer="validity",
        fault="F9",
        also=("F7",),
        severity="warn",
        confidence="possible",
        runs=tuple(case.id for case in cases),
        says=(
            f"{100 * share:.0f} % of the runs of {record.source} on {record.gpu} look limited by the host, and the "
            f"slowness of all {len(contrast.cases)} rises as their power falls (rank correlation "
            f"{found.statistic:.2f}): times of this machine scatter {_fold(contrast.slower):.1f}-fold around the "
            f"prediction, so its other {len(cases) - int(contrast.waiting.sum())} runs cannot be told from mildly "
            "slowed ones"
        ),
        evidence={
            "worst_run": contrast.cases[worst].id,
            "share_waiting": share,
            "rank_correlation_of_time_and_power": float(found.statistic),
            "p_value": float(found.pvalue),
            "fold_range_of_times_over_prediction": _fold(contrast.slower),
            "bound": f"share >= {MIN_SHARE}, rank correlation <= {MAX_CORRELATION} with p <= {MAX_P}",
        },
        next="take errors on this machine as upper bounds until some of its runs are repeated on an idle host",
    )


def _far(evidence: Evidence) -> Iterator[Finding]:
    """Single runs that are slower than anything that could have been left out of a model."""
    rows = [(case, time) for case in evidence.cases if (time := _time(case.record, case))]
    rows = [(case, time) for case, time in rows if time[0] >= FAR * time[1]]
    if not rows:
        return
    case, (measured, predicted, floor) = max(rows, key=lambda row: row[1][0] / row[1][1])
    yield Finding(
        check="host_bound.far_too_slow",
        layer="validity",
        fault="F9",
        also=("F2",),
        severity="warn",
        confidence="possible",
        runs=tuple(case.id for case, _ in rows),
        says=(
            f"{len(rows)} run{'s' if len(rows) > 1 else ''} at {FAR:g} times the predicted time per token or more: "
            f"{1e3 * measured:.4g} ms in '{case.id}' against {1e3 * predicted:.4g} ms predicted and a floor of "
            f"{1e3 * floor:.4g} ms"
        ),
        evidence={
            "worst_run": case.id,
            "measured_time_s": measured,
            "predicted_time_s": predicted,
            "floor_time_s": floor,
            "bound": f"measured >= {FAR:g} x predicted",
        },
        next="check the unit, then whether the engine fell back to another kernel or the machine was shared",
    )


def _fold(values: np.ndarray) -> float:
    """90th over 10th percentile of what is known."""
    known = values[np.isfinite(values)]
    return float(np.quantile(known, 0.9) / np.quantile(known, 0.1)) if len(known) else math.nan
