"""The suite: all checks over all runs, in layers, and what they mean for each run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path

from calibration.records import RunRecord
from calibration.vendored import fitted_run_ids
from validate.cases import Case, Evidence
from validate.finding import Finding, in_order
from validate.predict import Predictor
from validate.simulated import read_simulated, simulated_record

# In no order: a finding's layer says where it belongs.
CHECKS = (
    "provenance",
    "configuration",
    "workload",
    "independence",
    "validity",
    "energy_window",
    "meter",
    "host_bound",
    "definitions",
    "identities",
    "bounds",
    "power_bounds",
    "ceiling",
    "fingerprint",
    "dead",
    "shape",
    "neighbours",
    "error",
    "extrapolation",
)
# Findings that make a prediction an extrapolation.
EXTRAPOLATED = frozenset(f"extrapolation.{what}" for what in ("labelled", "regime", "leverage", "beyond_range"))
# A failure in one of them refuses the figures that it concerns; later layers speak of the simulator, not of the run.
REFUSING = ("provenance", "configuration", "workload", "validity", "definitions", "bounds", "views")


@dataclass(frozen=True)
class Verdict:
    """Everything the suite found about one file of runs."""

    evidence: Evidence
    findings: tuple[Finding, ...]

    @cached_property
    def _refusals(self) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.severity == "fail" and finding.layer in REFUSING:
                for run in finding.runs:
                    found.setdefault(run, []).append(finding)
        return found

    def refused(self, run: str, metric: str) -> Finding | None:
        """The first finding that forbids to hold this figure against its prediction; None: it may be judged."""
        refusals = self._refusals.get(run, ())
        return next((f for f in refusals if not f.metrics or metric in f.metrics), None)

    @cached_property
    def _extrapolated(self) -> set[str]:
        """Runs outside a range of the calibration, or inside all of them and yet of a kind that it has not seen."""
        return {run for finding in self.findings if finding.check in EXTRAPOLATED for run in finding.runs}

    def status(self, case: Case) -> str:
        """`ok`, `extrapolated`, `unsupported: reason`, or `refused: class` when some figure of the run is refused."""
        if case.simulated is None:
            own = self.evidence.own
            return case.prediction.status if own else "unsupported: not among the other simulator's figures"
        refusals = self._refusals.get(case.id)
        if refusals:
            return f"refused: {refusals[0].fault}"
        return "extrapolated" if case.id in self._extrapolated else "ok"

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings that are more than notes."""
        return tuple(finding for finding in self.findings if finding.alarm)


def run_checks(evidence: Evidence, names: Iterable[str] = CHECKS) -> Verdict:
    """The verdict of all checks (or some) on `evidence`."""
    found: list[Finding] = []
    for name in names:
        found.extend(check_of(name)(evidence))
    return Verdict(evidence, tuple(in_order(found)))


def check_of(name: str) -> Callable[[Evidence], Iterable[Finding]]:
    """The check with this name: a function in a module of its own."""
    return import_module(f"validate.checks.{name}").check


def evidence_of(
    records: Sequence[RunRecord],
    source: str,
    profile: str | None = None,
    simulated: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evidence:
    """Predict every run and put both sides together. `simulated`: a file of another simulator's figures.

    UserError for a profile or a file that cannot be used; a run that cannot be simulated stays a case without figures.
    """
    theirs = read_simulated(simulated, records) if simulated else None
    predictor = Predictor(profile)
    predictions = predictor.predict_all(records, progress)
    cases = [
        Case(p.record, p, theirs.get(p.record.run_id) if theirs is not None else simulated_record(p))
        for p in predictions
    ]
    fitted = fitted_run_ids(records, predictor.profiles.values())
    return Evidence(source, cases, predictor.profiles, frozenset(fitted), own=theirs is None)


def with_cases(evidence: Evidence, cases: Sequence[Case]) -> Evidence:
    """The same evidence with other cases."""
    return replace(evidence, cases=tuple(cases))
