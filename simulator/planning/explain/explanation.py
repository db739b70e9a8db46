"""What an explanation says: facts only; `simulator.report` turns them into text and pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from simulator.result import plain


@dataclass(frozen=True)
class Part:
    """A summand of a total, in its unit."""

    name: str
    title: str
    value: float


@dataclass(frozen=True)
class Split:
    """A total that its parts sum to. `by_phase`: of the parts that have one, phase -> name -> value."""

    title: str
    unit: str  # "s" or "J"
    total: float
    parts: tuple[Part, ...]
    by_phase: dict[str, dict[str, float]] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """Each part as a share of the total; zeros of nothing."""
        return {part.name: part.value / self.total if self.total else 0.0 for part in self.parts}


@dataclass(frozen=True)
class Sensitivity:
    """What one change brings: figure -> changed / present - 1, by simulating again with the same seeds.

    elasticity: change of log(time) over change of log(resource), of hardware. reason: why there are no figures.
    """

    name: str
    title: str
    kind: str  # "hardware", "engine", "tokens", "precision"
    changes: dict[str, float] = field(default_factory=dict)
    elasticity: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Explanation:
    """Where time and energy go, and what would change them.

    ladder: the time from the data sheet's roofline up. causes: the same time by cause. further: other times split
    (time to first token, critical path). energy: joules by consumer. calls: label -> mean seconds per call by phase.
    sensitivities: largest gain of time first. `figures`: names of the columns of `changes`, the time first.
    """

    kind: str  # "strategy" or "traffic"
    sentence: str
    notes: tuple[str, ...]
    ladder: Split
    causes: Split
    energy: Split
    further: tuple[Split, ...]
    calls: dict[str, dict[str, float]]
    figures: tuple[str, ...]
    sensitivities: tuple[Sensitivity, ...]
    facts: dict[str, Any]  # gpu, model, calibration, seed, version

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types, shares included."""
        out = plain(asdict(self))
        for name in ("ladder", "causes", "energy"):
            out[name]["shares"] = getattr(self, name).shares()
        for split, own in zip(out["further"], self.further):
            split["shares"] = own.shares()
        return out
