"""What `calibrate fit` prints: prior, fitted value, spread, identified or not; then errors. As text or as JSON."""

from __future__ import annotations

import json

import numpy as np

from calibration.error_statistics import errors_of
from calibration.family_fit import FamilyFit
from simulator.parameters import SPECS, flatten
from simulator.profile import Calibration

_SAMPLES = ("in_sample", "left_out")


def fit_text(result: FamilyFit, profile: Calibration, gpu: str) -> str:
    """The fit as tables."""
    lines = [f"{profile.title}: {profile.source}, {len(result.points)} times", ""]
    lines.append(f"{'parameter':36} {'unit':8} {'prior':>11} {'fitted':>11} {'spread':>8}  identified")
    for row in _parameters(result, profile, gpu):
        lines.append(
            f"{row['name']:36} {row['unit']:8} {row['prior']:11.4g} {row['fitted']:11.4g} {100 * row['log_sd']:7.1f}%  "
            f"{'yes' if row['identified'] else 'no'}"
        )
    if not result.times.fit_.solution.converged:
        lines += ["", "WARNING: the search stopped at its limit of evaluations: the values are not a minimum"]
    lines += ["", "spread that intervals are built from (log standard deviation):"]
    lines.append("  " + ", ".join(f"{kind} {sd:.3f}" for kind, sd in profile.log_sd.items()))
    lines += ["", f"{'error, median (p90)':26} {'n':>5} {'in-sample':>16} {'model left out':>16}"]
    for metric, found in _errors(result).items():
        both = [
            f"{100 * e['median']:.1f}% ({100 * e['p90']:.1f}%)" if e else "one model only"
            for e in (found[sample] for sample in _SAMPLES)
        ]
        lines.append(f"{metric:26} {found['in_sample']['n']:5d} {both[0]:>16} {both[1]:>16}")
    return "\n".join(lines)


def fit_json(result: FamilyFit, profile: Calibration, gpu: str) -> str:
    """The same as one JSON object. Errors are fractions; `correlation` is that of the parameters in `fitted`."""
    found = {
        "id": profile.id,
        "title": profile.title,
        "source": profile.source,
        "times": len(result.points),
        "converged": bool(result.times.fit_.solution.converged),
        "parameters": _parameters(result, profile, gpu),
        "fitted": list(profile.fitted),
        "correlation": np.asarray(profile.correlation).tolist(),
        "interval_log_sd": profile.log_sd,
        "errors": _errors(result),
        "notes": list(profile.notes),
    }
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)


def _parameters(result: FamilyFit, profile: Calibration, gpu: str) -> list[dict]:
    """One row per parameter that was free, times before power."""
    before, after = flatten(result.times.priors_[gpu].parameters), flatten(profile.parameters)
    missing = {n.rpartition("/")[2] for m in (result.times, result.power) if m for n in m.fit_.solution.not_identified}
    return [
        {
            "name": name, "unit": SPECS[name].unit, "prior": before[name], "fitted": after[name], "log_sd": spread,
            "identified": name not in missing,
        }
        for name, spread in profile.parameter_log_sd.items()
    ]  # fmt: skip


def _errors(result: FamilyFit) -> dict[str, dict]:
    """By metric: statistics of the errors in-sample and with the model left out (None: one model only)."""
    by_metric: dict[str, list] = {}
    for p in result.predictions:
        by_metric.setdefault(p.metric, []).append(p)
    out: dict[str, dict] = {}
    for metric, found in by_metric.items():
        statistics = {sample: errors_of((getattr(p, sample), p.measured) for p in found) for sample in _SAMPLES}
        out[metric] = {s: e and {"n": e.n, "bias": e.bias, "mape": e.mape, "median": e.median, "p90": e.p90}
                       for s, e in statistics.items()}  # fmt: skip
    return out
