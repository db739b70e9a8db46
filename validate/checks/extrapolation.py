"""F10 and F13: what is asked of a calibration beyond what it was fitted on, and of this version beyond its range."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from calibration.records import METRICS, RunRecord, row_hash
from calibration.setup import Setup, Unsupported, kv_may_bind, resolve
from simulator.profile import Calibration
from validate.cases import Case, Evidence
from validate.checks.shipped import shipped_rows
from validate.finding import Finding

MARGIN = 1.1  # times the end of a range: as the profiles have it (simulator/profile.py)
LEVERAGE = 3.0  # times p / n, p features and n fitted rows (taxonomy, X1)
NEIGHBOUR_QUANTILE = 0.99  # of the distances between neighbours within the fit (taxonomy, X1)
LEAST_ROWS = 20  # of a fit: fewer say nothing of how far its rows lie apart
# What a row of another simulator says of the range that its formula was fitted on.
FITTED_FLAG = re.compile(r"fitted:(\w+):(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")
_UNITS = {
    "tok_per_s": "tokens/s",
    "_per_output_tok": "J",
    "_tok": "tokens",
    "_s_": "s",
    "duration_s": "s",
    "power_w": "W",
}
KNOWN_SHARE = 0.9  # of a profile's rows that must be at hand for its fit to be looked into


def check(evidence: Evidence) -> Iterator[Finding]:
    """Labels of what lies outside, and alarms where the interval does not know that it does."""
    if not evidence.own:
        yield from _stated_ranges(evidence)
        return
    yield from _labels(evidence)
    yield from _unsupported(evidence)
    for name, profile in evidence.profiles.items():
        cases = [case for case in evidence.cases if case.prediction.profile == name and case.setup is not None]
        if profile.fitted_on is not None and cases:
            yield from _against_the_fit(profile, cases, evidence)


def _stated_ranges(evidence: Evidence) -> Iterator[Finding]:
    """Another simulator's figures outside the range that it states: flags `fitted:COLUMN:LOW:HIGH` of its rows."""
    groups: dict[str, list[Case]] = {}
    for case in evidence.cases:
        for flag in case.simulated.flag_list if case.simulated is not None else ():
            if FITTED_FLAG.fullmatch(flag):
                groups.setdefault(flag, []).append(case)
    for flag, cases in groups.items():
        name, low, high = FITTED_FLAG.fullmatch(flag).groups()
        values = {case.id: getattr(case.record, name, None) for case in cases}
        shared = next((m for m in METRICS if any(m in case.ratios for case in cases)), None)
        both = {case.id: case for case in cases if shared in case.ratios}
        finding = beyond_range(
            {run: float(x) for run, x in values.items() if isinstance(x, (int, float))},
            float(low), float(high), name=name, unit=_unit(name), claimed=True, metrics=(shared,) if shared else (),
            predicted={run: case.measured[shared] * case.ratios[shared] for run, case in both.items()},
            measured={run: case.measured[shared] for run, case in both.items()},
            figure_unit=_unit(shared or ""),
        ) if 0.0 < float(low) <= float(high) else None  # fmt: skip
        if finding is not None:
            yield finding


def _unit(column: str) -> str:
    return next((unit for mark, unit in _UNITS.items() if mark in column), "")


def _labels(evidence: Evidence) -> Iterator[Finding]:
    """What predictions say of themselves; their intervals are widened for it."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for case in evidence.cases:
        for sentence in case.prediction.notes:
            groups.setdefault(_kind(sentence), []).append((case.id, sentence))
    for found in groups.values():
        runs = tuple(dict.fromkeys(run for run, _ in found))
        worst, sentence = max(found, key=lambda pair: _first_number(pair[1]))
        yield Finding(
            check="extrapolation.labelled", layer="extrapolation", fault="F10", severity="note", confidence="certain",
            runs=runs, says=f"{_of_runs(runs)} outside the calibration, intervals widened: {sentence}",
            evidence={"runs": len(runs), "worst_run": worst},
        )  # fmt: skip


def _unsupported(evidence: Evidence) -> Iterator[Finding]:
    """R5: configurations that are refused instead of approximated."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for case in evidence.cases:
        verdict, _, reason = case.prediction.status.partition(": ")
        if verdict == "unsupported":
            groups.setdefault(_kind(reason), []).append((case.id, reason))
    for found in groups.values():
        runs = tuple(run for run, _ in found)
        yield Finding(
            check="extrapolation.unsupported", layer="extrapolation", fault="F13", severity="note",
            confidence="certain", runs=runs, says=f"{_of_runs(runs)} not simulated: {found[0][1]}",
            evidence={"runs": len(runs), "reason": found[0][1]},
            next="state what is missing, or leave these runs out: nothing is guessed for them",
        )  # fmt: skip


def _kind(sentence: str) -> str:
    """A sentence without its numbers and names of runs: equal for the same reason."""
    return re.sub(r"[\d,.]+|'[^']*'", "#", sentence)


def _first_number(sentence: str) -> float:
    found = re.search(r"\d[\d,]*(\.\d+)?", sentence)
    return float(found.group().replace(",", "")) if found else 0.0


def _of_runs(runs: Sequence[str]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


# What a run is made of, as far as a fit can interpolate in it.
def _features(setup: Setup) -> list[float]:
    concurrent = min(setup.batch, setup.settings.max_num_seqs * setup.parallel.dp)
    return [
        np.log(max(x, 1e-9))
        for x in (
            concurrent, setup.input_tok + setup.output_tok, setup.input_tok, setup.output_tok,
            setup.model.parameters(), setup.parallel.tp, setup.precision.weight_byte,
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    """The fitted rows in standardised features, constant ones left out (ranges have their say on those)."""

    mean: np.ndarray
    sd: np.ndarray
    spread: np.ndarray  # (columns,) of bool: features in which the fit has any range
    inverse: np.ndarray
    limit: float  # of the leverage
    tree: cKDTree
    far: float  # standard deviations

    @classmethod
    def of(cls, features: np.ndarray) -> _Fit:
        mean, sd = features.mean(axis=0), features.std(axis=0)
        spread = sd > 1e-9
        points = (features[:, spread] - mean[spread]) / sd[spread]
        rows = np.column_stack([np.ones(len(points)), points])
        limit = LEVERAGE * np.linalg.matrix_rank(rows) / len(rows)
        tree = cKDTree(points)
        far = float(np.quantile(tree.query(points, k=2)[0][:, 1], NEIGHBOUR_QUANTILE))
        return cls(mean, sd, spread, np.linalg.pinv(rows.T @ rows), float(limit), tree, far)

    def leverages(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(leverage, distance to the nearest fitted row in standard deviations) of each row of `features`."""
        points = (features[:, self.spread] - self.mean[self.spread]) / self.sd[self.spread]
        rows = np.column_stack([np.ones(len(points)), points])
        return np.einsum("ij,jk,ik->i", rows, self.inverse, rows), self.tree.query(points)[0]


def _against_the_fit(profile: Calibration, cases: Sequence[Case], evidence: Evidence) -> Iterator[Finding]:
    fitted = _fitted_setups(profile, evidence)
    new = [case for case in cases if case.id not in evidence.fitted]
    if not new:
        return
    if len(fitted) < KNOWN_SHARE * profile.fitted_on.rows:
        yield Finding(
            check="extrapolation.fit_not_at_hand", layer="extrapolation", fault="F10", severity="note",
            confidence="certain", runs=tuple(case.id for case in new),
            says=f"unverified: {len(fitted)} of the {profile.fitted_on.rows} rows that {profile.id} was fitted on are "
            "at hand, so that only its ranges were looked at",
            evidence={"rows_found": len(fitted), "rows_fitted": profile.fitted_on.rows},
            next="keep the rows of the fit in the file that is validated, or beside the profile",
        )  # fmt: skip
        return
    yield from _new_regimes(profile, fitted, new)
    features = np.array([_features(setup) for setup in fitted])
    if len(fitted) >= LEAST_ROWS and np.ptp(features, axis=0).any():
        yield from _lonely(profile, _Fit.of(features), new)


def _fitted_setups(profile: Calibration, evidence: Evidence) -> list[Setup]:
    """Setups of the rows of a fit, of those that ship or stand in the file itself."""
    wanted = set(profile.fitted_on.row_hashes)
    own = {row_hash(case.record): case.setup for case in evidence.cases if case.id in evidence.fitted and case.setup}
    shipped = shipped_rows()
    found = [own.get(row) or (_setup(shipped[row]) if row in shipped else None) for row in sorted(wanted)]
    return [setup for setup in found if setup is not None]


def _setup(record: RunRecord) -> Setup | None:
    try:
        return resolve(record)
    except Unsupported:
        return None


def _waits(setup: Setup) -> bool:
    """Whether first tokens wait for other requests."""
    return setup.record.load not in ("static_batch", "parallel_sampling") and setup.batch > 1


# X2, regimes: (a name, whether a run is in it, whether its interval already allows for it). Communication and eager
# steps are ranges of the profile and so among the labels.
_REGIMES: tuple[tuple[str, Callable[[Setup], bool], bool], ...] = (
    ("the KV cache, not the number of clients, sets how many run", kv_may_bind, False),
    ("requests wait for each other before their first token", _waits, True),
)


def _new_regimes(profile: Calibration, fitted: Sequence[Setup], new: Sequence[Case]) -> Iterator[Finding]:
    for name, holds, allowed_for in _REGIMES:
        if any(map(holds, fitted)):
            continue
        inside = [case for case in new if holds(case.setup)]
        for labelled in (False, True):
            runs = tuple(case.id for case in inside if (case.prediction.status == "extrapolated") is labelled)
            if not runs:
                continue
            yield Finding(
                check="extrapolation.allowed_for" if allowed_for else "extrapolation.regime",
                layer="extrapolation", fault="F10",
                severity="note", confidence="likely", runs=runs,
                says=f"regime never calibrated: in {_of_runs(runs)} {name}; none of the {len(fitted)} rows behind "
                f"{profile.id} is like that",
                evidence={"regime": name, "fitted_rows": len(fitted), "runs": len(runs)},
                next="measure some runs in this regime and fit again; no error bar of the profile covers it",
            )  # fmt: skip


def _lonely(profile: Calibration, fit: _Fit, new: Sequence[Case]) -> Iterator[Finding]:
    """Inside every range and yet far from every fitted row: a combination that was never measured."""
    inside = [case for case in new if case.prediction.status == "ok"]
    if not inside:
        return
    leverage, distance = fit.leverages(np.array([_features(case.setup) for case in inside]))
    lonely = np.flatnonzero((leverage > fit.limit) & (distance > fit.far))
    if not len(lonely):
        return
    worst = lonely[np.argmax(leverage[lonely])]
    yield Finding(
        check="extrapolation.leverage", layer="extrapolation", fault="F10", severity="note", confidence="possible",
        runs=tuple(inside[i].id for i in lonely),
        says=f"{_of_runs(lonely)} inside each range of {profile.id} but far from all its rows: leverage "
        f"{leverage[worst]:.2g} (limit {fit.limit:.2g}), the nearest row {distance[worst]:.1f} standard deviations off",
        evidence={
            "leverage": float(leverage[worst]), "leverage_limit": fit.limit, "formula": "x' (X'X)^-1 x > 3 p / n",
            "distance_sd": float(distance[worst]), "distance_limit_sd": fit.far, "worst_run": inside[worst].id,
        },
        next="measure a run near this batch, context, model size and split before trusting the interval",
    )  # fmt: skip


def beyond_range(
    values: Mapping[str, float], fitted_min: float, fitted_max: float, *, name: str, unit: str, claimed: bool,
    metrics: tuple[str, ...] = (), predicted: Mapping[str, float] | None = None,
    measured: Mapping[str, float] | None = None, figure_unit: str = "",
) -> Finding | None:  # fmt: skip
    """What a formula of anyone's, fitted for `name` from `fitted_min` to `fitted_max`, is worth at `values` (by run).

    claimed: whether the formula is used with the error of its fit, as if inside: then its figures must not be used;
    otherwise they are labelled. predicted, measured (by run, `figure_unit`): what it says and what was seen; the worst
    run is that with the largest ratio between them, else the farthest outside. None when no run is outside by more
    than `MARGIN`. ValueError for a range that is none.
    """
    if not 0.0 < fitted_min <= fitted_max:
        raise ValueError(f"range of a fit from {fitted_min} to {fitted_max}, expected 0 < smallest <= largest")
    factors = {run: max(fitted_min / x, x / fitted_max) for run, x in values.items() if x > 0.0}
    outside = {run: factor for run, factor in factors.items() if factor > MARGIN}
    if not outside:
        return None
    both = {
        run: predicted[run] / measured[run]
        for run in outside
        if predicted and measured and run in predicted and run in measured
    }
    worst = max(both, key=lambda run: abs(np.log(both[run]))) if both else max(outside, key=outside.__getitem__)
    seen = f": it says {predicted[worst]:.3g} {figure_unit}, {measured[worst]:.3g} were measured" if both else ""
    ratio = {"predicted": predicted[worst], "measured": measured[worst], "ratio": both[worst]} if both else {}
    return Finding(
        check="extrapolation.beyond_range", layer="extrapolation", fault="F10",
        severity="fail" if claimed else "warn", confidence="certain", runs=tuple(outside), metrics=metrics,
        says=f"a formula fitted on {name} from {fitted_min:g} to {fitted_max:g} {unit} is used at {values[worst]:g} "
        f"{unit}, {outside[worst]:.1f} times outside{seen}",
        evidence={
            name: values[worst], "fitted_min": fitted_min, "fitted_max": fitted_max, "unit": unit,
            "factor_outside": outside[worst], "worst_run": worst, **ratio,
        },
        next="fit on the range that is asked for, and print no error bar of the fit outside it",
    )  # fmt: skip
