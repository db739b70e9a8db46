"""Errors of the figures that may be judged, by GPU, load, metric and regime: with intervals, beside the noise floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibration.judged import FAMILIES as LEDGER_FAMILIES
from calibration.judged import WHOLE_RUN
from validate.cases import Case, Evidence
from validate.regimes import Regimes
from validate.statistics import (
    Correlations,
    ErrorBudget,
    ErrorIntervals,
    correlations,
    equivalence,
    error_budget,
    error_intervals,
    margin_of,
    regret,
    signal_to_noise,
)

SEED = 20240229
# One figure of a family for each run, the first that it has: a mean and a median of one run are one measurement. The KV
# cache is read where a record states it, so it is no prediction.
FAMILIES = {name: columns for name, columns in LEDGER_FAMILIES.items() if name != "KV capacity"}
MIN_RUNS = 5  # fewer say nothing of a mean
LARGER_IS_BETTER = ("throughput",)
VERDICTS = {"pass": "consistent", "fail": "mismatch", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class Pair:
    """One figure of a run on both sides. ratio: simulated / measured."""

    case: Case
    metric: str
    measured: float
    ratio: float


@dataclass(frozen=True)
class ErrorGroup:
    """Errors (fractions, simulated / measured - 1) of one (GPU, load, metric family, regime).

    noise: relative standard deviation of repeats, from `noise_origin`. verdict: consistent, mismatch or inconclusive,
    of the interval of the mean ratio against the margin; a mean error within the budget of sensor, client, noise and
    definitions is no mismatch. correlations: over configurations. regret: median over sets of alternatives for one
    model and load, nan without any; snr: of the same sets, whether they can be ranked at all.
    """

    gpu: str
    load: str
    metric: str
    regime: str
    errors: ErrorIntervals
    noise: float
    noise_origin: str
    budget: ErrorBudget
    margin: float
    equivalence: str
    verdict: str
    correlations: Correlations
    regret: float
    snr: float

    @property
    def signs_cancel(self) -> bool:
        """Whether the mean says little of the size of the errors."""
        return hidden_by_mean(self.errors.bias.value, self.errors.mape.value, self.errors.p90.value, self.noise)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; nan as None, as JSON has none."""
        return _without_nan({**asdict(self), "signs_cancel": self.signs_cancel})


def pairs_of(case: Case) -> dict[str, Pair]:
    """The figures of a run that can be held against each other, by family."""
    out = {}
    ratios, record = case.ratios, case.record
    for family, names in FAMILIES.items():
        metric = next((name for name in names if ratios.get(name, 0.0) > 0.0), None)
        if metric is None or _repeated(record, family, ratios):
            continue
        if metric.startswith(("power", "energy")):
            if _other_scope(case):
                continue
            family += WHOLE_RUN if record.flagged("whole_run_power") else ""  # start-up and idle samples are in it
        out[family] = Pair(case, metric, case.measured[metric], ratios[metric])
    return out


def _other_scope(case: Case) -> bool:
    """A rail against a board: two quantities, which a definition check speaks of."""
    ours = None if case.simulated is None else case.simulated.power_scope
    return bool(ours and case.record.power_scope) and ours != case.record.power_scope


def _repeated(record: Any, family: str, ratios: dict[str, float]) -> bool:
    """One measurement under two names: it counts once."""
    if family == "E2E":
        return (record.output_tok or 2.0) < 2.0 and "ttft_s_mean" in ratios
    if family == "TPOT":
        return (record.output_tok or 2.0) < 2.0
    return family == "duration" and record.load == "static_batch" and "e2e_s_mean" in ratios


def grouped(pairs: Sequence[tuple[str, Pair]]) -> dict[tuple[str, str, str, str], list[Pair]]:
    """(family, pair) by (GPU, load, family, regime), in order of first appearance."""
    regimes, out = Regimes(), {}
    for family, pair in pairs:
        record = pair.case.record
        setup = pair.case.setup
        gpu = record.gpu if setup is None else setup.device.id
        out.setdefault((gpu, record.load, family, regimes.of(pair.case, pair.metric)), []).append(pair)
    return out


def error_groups(
    evidence: Evidence, judged: Callable[[Case, str], bool], rng: np.random.Generator | None = None
) -> list[ErrorGroup]:
    """One group per (GPU, load, metric family, regime) of the figures for which `judged(case, metric)` holds."""
    rng = np.random.default_rng(SEED) if rng is None else rng
    rows = [
        (family, pair)
        for case in evidence.cases
        for family, pair in pairs_of(case).items()
        if judged(case, pair.metric)
    ]  # fmt: skip
    return [_group(evidence, key, members, rng) for key, members in grouped(rows).items()]


def _group(
    evidence: Evidence, key: tuple[str, str, str, str], members: Sequence[Pair], rng: np.random.Generator
) -> ErrorGroup:
    gpu, load, family, regime = key
    metric = members[0].metric
    errors = error_intervals([pair.ratio for pair in members], [shared_error(pair.case) for pair in members], rng)
    noise, margin = evidence.noise.of(metric), margin_of(metric)
    budget = error_budget(metric, noise)
    equal = equivalence(errors.ratio, margin)
    if len(members) < MIN_RUNS or (equal == "fail" and abs(math.log(errors.ratio.value)) <= math.log1p(budget.total)):
        equal = "inconclusive"
    simulated = [pair.ratio * pair.measured for pair in members]
    choices = _choices(members)
    return ErrorGroup(
        gpu, load, family, regime, errors, noise, evidence.noise.origin, budget, margin, equal, VERDICTS[equal],
        correlations(simulated, [pair.measured for pair in members]),
        _median([
            regret([p.ratio * p.measured for p in c], [p.measured for p in c], family not in LARGER_IS_BETTER)
            for c in choices
        ]),
        _median([signal_to_noise([p.measured for p in c], noise) for c in choices]),
    )  # fmt: skip


def shared_error(case: Case) -> Hashable:
    """What runs are off by together: one model on one machine in one campaign."""
    record = case.record
    return record.source, record.gpu, record.model, record.campaign


def _choices(members: Sequence[Pair]) -> list[list[Pair]]:
    """Sets of alternatives: the same model, lengths and load on different deployments."""
    sets: dict[tuple, dict[Hashable, Pair]] = {}
    for pair in members:
        r = pair.case.record
        key = (r.source, r.model, r.load, r.concurrency, r.request_rate_rps, r.num_requests, r.input_tok, r.output_tok)
        where = None if pair.case.setup is None else pair.case.setup.deployment
        sets.setdefault(key, {}).setdefault(where, pair)
    return [list(found.values()) for found in sets.values() if len(found) > 1]


# What a mean hides: errors of this size that are so much larger than their mean (TAXONOMY, LSS-AGG: -4.0 % against
# 10.8 % and 26.6 %, -13.6 % against 21.8 % and 39.1 %).
HIDDEN_MAPE, HIDDEN_P90 = 0.10, 0.20
MAPE_OVER_BIAS, P90_OVER_BIAS = 1.5, 2.5


def hidden_by_mean(bias: float, mape: float, p90: float, noise: float = 0.0) -> bool:
    """Whether errors that matter, and that repeats do not explain, are much larger than their mean."""
    matters = mape >= max(HIDDEN_MAPE, 2.0 * noise) and p90 >= HIDDEN_P90
    return matters and mape >= MAPE_OVER_BIAS * abs(bias) and p90 >= P90_OVER_BIAS * abs(bias)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
