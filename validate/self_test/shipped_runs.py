"""The suite on the shipped runs, none of which tells it that it is suspect: false alarms, and rows that are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from calibration.records import RunRecord
from validate.cases import Evidence
from validate.self_test.material import clean, shipped, unlabelled
from validate.statistics import Interval, clopper_pearson
from validate.suite import evidence_of, run_checks, with_cases


@dataclass(frozen=True)
class FileCheck:
    """One shipped file. alarmed: clean runs that stand in an alarm; by_check: how many, by what found them.

    suspects, caught: runs that are flagged `suspect:`, by reason, and those of them that stand in an alarm.
    """

    name: str
    clean: int
    alarmed: tuple[str, ...]
    by_check: dict[str, int]
    suspects: dict[str, int]
    caught: dict[str, int]
    missed: tuple[str, ...]


def check_file(name: str, checks: Sequence[str]) -> tuple[FileCheck, Evidence]:
    """Judge one shipped file; with it, the evidence of its clean runs."""
    records = shipped(name)
    evidence = evidence_of([unlabelled(record) for record in records], name)
    found: dict[str, set[str]] = {}
    for finding in run_checks(evidence, checks).alarms:
        for run in finding.runs:
            found.setdefault(run, set()).add(f"{finding.check} {finding.fault}")
    good = [record.run_id for record in clean(records)]
    alarmed = tuple(run for run in good if run in found)
    suspect = [record for record in records if record.flagged("suspect:")]
    caught = [record for record in suspect if record.run_id in found]
    judged = FileCheck(
        name=name,
        clean=len(good),
        alarmed=alarmed,
        by_check=dict(Counter(check for run in alarmed for check in sorted(found[run])).most_common()),
        suspects=_by_reason(suspect),
        caught=_by_reason(caught),
        missed=tuple(record.run_id for record in suspect if record.run_id not in found),
    )
    kept = set(good)
    return judged, with_cases(evidence, [case for case in evidence.cases if case.id in kept])


def _by_reason(records: Sequence[RunRecord]) -> dict[str, int]:
    return dict(sorted(Counter(record.flag_value("suspect:") or "" for record in records).items()))


def share(hits: int, n: int) -> Interval | None:
    """A share with its 95 % Clopper-Pearson interval; None of nothing."""
    return clopper_pearson(hits, n) if n else None
