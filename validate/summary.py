"""What the suite says about a file of runs, as plain types: the content of the table, the JSON object and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from calibration.judged import APART
from validate.cases import Case
from validate.error_groups import error_groups
from validate.errors import error_lines
from validate.finding import fault_classes
from validate.predict import Prediction
from validate.suite import Verdict


def summary(verdict: Verdict) -> dict[str, Any]:
    """Everything that is shown. Errors are those of figures that no check refuses, fractions (0.05 = 5 %)."""
    evidence = verdict.evidence
    clean = [case for case in evidence.cases if not _apart(case)]
    inside = [case for case in clean if case.id in evidence.fitted]
    outside = [case for case in clean if case.id not in evidence.fitted]

    def judged(case: Case, metric: str) -> bool:
        return not _apart(case) and verdict.refused(case.id, metric) is None

    def keep(prediction: Prediction, metric: str) -> bool:
        return verdict.refused(prediction.record.run_id, metric) is None

    def lines(cases: Iterable[Case], group_of: Callable[[Prediction, str], str]) -> list[dict[str, Any]]:
        return [line.to_dict() for line in error_lines((c.prediction for c in cases), group_of, keep)]

    return {
        "source": evidence.source,
        "runs": len(evidence.cases),
        "verdict": headline(verdict),
        "status": dict(Counter(verdict.status(case) for case in evidence.cases).most_common()),
        "refused_figures": _refused_figures(verdict),
        "findings": [finding.to_dict() for finding in verdict.findings],
        "noise_floor": {"origin": evidence.noise.origin, "repeats": evidence.noise.n, "spread": evidence.noise.spread},
        "profiles": [
            {"name": p.id, "title": p.title, "data_hash": p.data_hash, "log_sd": p.log_sd}
            for p in evidence.profiles.values()
        ],
        "fitted_rows": len(inside),
        "new_rows": len(outside),
        "groups": [group.to_dict() for group in error_groups(evidence, judged)],
        "errors": lines(clean, group_name),
        "errors_overall": [
            *lines(inside, _overall("clean rows that the profile was fitted on")),
            *lines(outside, _overall("clean rows new to the profile")),
        ],
        "errors_of_suspect_rows": lines([case for case in evidence.cases if _apart(case)], group_name),
        "extrapolated": sorted({note for case in evidence.cases for note in case.prediction.notes}),
    }


def headline(verdict: Verdict) -> dict[str, Any]:
    """The verdict in a word and a sentence: `consistent`, `mismatch suspected` or `unverifiable`."""
    evidence = verdict.evidence
    predicted = sum(bool(case.prediction.values) for case in evidence.cases)
    if not predicted:
        return {"word": "unverifiable", "says": "no run could be simulated, so nothing was compared"}
    alarms = verdict.alarms
    if not alarms:
        return {"word": "consistent", "says": f"no mismatch found in {predicted} runs that were compared"}
    by_class = dict.fromkeys(fault_classes(), 0)
    for finding in alarms:
        by_class[finding.fault] += max(1, len(finding.runs))
    touched = {run for finding in alarms for run in finding.runs}
    named = ", ".join(f"{f} {fault_classes()[f].name} ({n})" for f, n in by_class.items() if n)
    return {
        "word": "mismatch suspected",
        "says": f"{len(alarms)} finding{'s' * (len(alarms) != 1)} about {len(touched)} of {len(evidence.cases)} runs: "
        f"{named}",
    }


def _refused_figures(verdict: Verdict) -> int:
    """How many measured figures with a prediction no error is given for."""
    return sum(
        verdict.refused(case.id, metric) is not None
        for case in verdict.evidence.cases
        for metric in case.prediction.values
    )


def _apart(case: Case) -> bool:
    return any(case.record.flagged(flag) for flag in APART)


def group_name(prediction: Prediction, metric: str) -> str:
    """GPU, model, load and what sets a group apart: rows with a warning never mix with clean ones."""
    record = prediction.record
    parts = [prediction.device or record.gpu, record.model.split("/")[-1], record.load, record.campaign]
    if record.weight_dtype not in (None, "bf16", "fp16"):
        parts.append(record.weight_dtype)
    if any(record.flagged(flag) for flag in APART):
        parts.append("suspect")
    parts.append(_power_caveat(prediction, metric))
    return " · ".join(part for part in parts if part)


def _overall(rows: str) -> Callable[[Prediction, str], str]:
    return lambda p, metric: ", ".join(part for part in (rows, _power_caveat(p, metric)) if part)


def _power_caveat(prediction: Prediction, metric: str) -> str:
    """Why a power or energy figure is not what the profile predicts: another rail, or more than the run."""
    record = prediction.record
    if not metric.startswith(("power", "energy")):
        return ""
    if record.power_scope and prediction.power_scope and record.power_scope != prediction.power_scope:
        return f"{record.power_scope} power against {prediction.power_scope}"
    # Start-up and idle samples are in it, so it measures the sampling too.
    return "whole-run power" if record.flagged("whole_run_power") else ""
