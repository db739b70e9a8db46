"""What the collector's power meter says of its own windows: views that differ, power that was not steady (F6, F9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from validate.cases import Evidence
from validate.finding import Finding

POWER = ("power_w", "energy_j_per_output_tok")


@dataclass(frozen=True)
class _Said:
    """A flag of `calibrate collect` (docs/collecting.md), and what it means for the figures of power."""

    fault: str
    layer: str
    severity: str
    says: str
    next: str


_FLAGS = {
    "power:views_differ": _Said(
        "F6", "views", "warn",
        "the energy counter and the integral of the sampled power lie more than 10 % apart",
        "lengthen the window to 5 s or more, and read the counter once at each end",
    ),
    "power:not_steady": _Said(
        "F9", "validity", "warn", "power rose or fell over the window",
        "warm up until power is level, then measure again",
    ),
    "power:gaps": _Said(
        "F9", "validity", "note", "no power is given: the meter ran on between the runs",
        "run the load back to back, or read power apart",
    ),
}  # fmt: skip


def check(evidence: Evidence) -> Iterator[Finding]:
    """One finding per flag, with the runs that carry it."""
    for flag, said in _FLAGS.items():
        runs = tuple(case.id for case in evidence.cases if flag in case.record.flag_list)
        if runs:
            yield Finding(
                check=f"meter.{flag.removeprefix('power:')}", layer=said.layer, fault=said.fault,
                severity=said.severity, confidence="certain", runs=runs, metrics=POWER,
                says=f"in {len(runs)} run{'s' * (len(runs) > 1)} {said.says}",
                evidence={"flag": flag, "runs": len(runs), "worst_run": runs[0]}, next=said.next,
            )  # fmt: skip
