"""What a check says: which class of mismatch is suspected, on what evidence, and what to look at next."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FAULTS = Path(__file__).parent / "faults.toml"
# In the order of evaluation: a figure that an early layer refuses gets no error percentage from a later one.
LAYERS = (
    "provenance", "configuration", "workload", "validity", "definitions", "bounds", "views", "shape", "error",
    "extrapolation",
)  # fmt: skip
SEVERITIES = ("fail", "warn", "note")  # must not be used; usable with this label; said, but no alarm
CONFIDENCES = ("certain", "likely", "possible")  # by arithmetic; by strong evidence; one of several explanations


@dataclass(frozen=True)
class FaultClass:
    """One class of the taxonomy (validate/faults.toml)."""

    id: str
    name: str
    meaning: str
    next: str


@cache
def fault_classes() -> dict[str, FaultClass]:
    """F1 to F14, by id."""
    return {fault: FaultClass(fault, **facts) for fault, facts in tomllib.loads(FAULTS.read_text()).items()}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One suspected mismatch. It accuses no side: it names a class and the numbers that speak for it.

    check: what found it, "bounds.decode_floor". runs: ids, in the file's order. metrics: columns that it concerns,
    () for the whole run. says: one sentence with the numbers. evidence: the same numbers, by name with unit, and the
    formula of a bound. also: further classes that the evidence fits. worst: run id where the evidence is strongest.
    """

    check: str
    layer: str
    fault: str
    severity: str
    confidence: str
    runs: tuple[str, ...]
    says: str
    metrics: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    evidence: dict[str, float | str] = field(default_factory=dict)
    next: str = ""

    def __post_init__(self) -> None:
        assert self.layer in LAYERS and self.severity in SEVERITIES and self.confidence in CONFIDENCES, self
        assert {self.fault, *self.also} <= fault_classes().keys(), self

    @property
    def alarm(self) -> bool:
        """Whether it says more than what is not known."""
        return self.severity != "note"

    @property
    def advice(self) -> str:
        """What to check next."""
        return self.next or fault_classes()[self.fault].next

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "next": self.advice, "fault_name": fault_classes()[self.fault].name}


def in_order(findings: list[Finding]) -> list[Finding]:
    """By layer, then severity, then the number of runs; stable."""
    return sorted(findings, key=lambda f: (LAYERS.index(f.layer), SEVERITIES.index(f.severity), -len(f.runs)))
