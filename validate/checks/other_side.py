"""Another simulator's figures, looked at as if they were measured: laws of one record hold for both sides of a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from calibration.records import METRICS, RunRecord
from validate.cases import Case, Evidence
from validate.finding import Finding


def alarms_of_simulated(evidence: Evidence, check: Callable[[Evidence], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check of records would raise of the simulated side; nothing of our own, which tests answer for."""
    if evidence.own:
        return
    cases = [
        Case(figures_of(case.simulated, case.record), case.prediction)
        for case in evidence.cases
        if case.simulated is not None
    ]
    for finding in check(replace(evidence, cases=cases)):
        if finding.alarm:
            says = f"simulated figures: {finding.says}"
            yield replace(finding, says=says, evidence={**finding.evidence, "side": "simulated"})


def figures_of(simulated: RunRecord, measured: RunRecord) -> RunRecord:
    """The simulated figures, with the measured run's settings where a file of predictions states none."""
    stated = {
        name: value
        for name in RunRecord.__struct_fields__
        if (value := getattr(simulated, name)) is not None or name in METRICS
    }
    return msgspec.structs.replace(measured, **stated)
