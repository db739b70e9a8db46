"""One published figure beside what the simulator says."""

from __future__ import annotations

import math
from dataclasses import dataclass

RELATIONS = ("equals", "at most", "at least")
ROUNDING = 1e-9  # relative: sums of floats that should be equal
STATUSES = ("verbatim", "derived", "secondary")  # as the authors print it; computed from that; quoted by a third party
KINDS = {  # what a match would show
    "prediction": "the simulator computes what a GPU or a random process does",
    "re-implementation": "another model's output, computed again under that model's own accounting",
    "fitted": "the profile was fitted to these very runs: a check of the fit, no forecast",
    "arithmetic": "follows from the stated inputs by arithmetic or in closed form",
}
MISSED, EXPLAINED = "missed", "missed (explained)"
VERDICTS = ("met", EXPLAINED, MISSED, "reported", "not reproduced")


@dataclass(frozen=True)
class Comparison:
    """A published figure, the simulated one, and how far apart they may be.

    `tolerance` is the target that was set before, relative (0.10 = 10 %), and never widened to what is reached. None:
    there is no target, because nothing comparable is published; `reason` says why.
    """

    strategy: str  # name in the library, or what is compared if it is no strategy ("idealized runtime", "precision")
    quantity: str  # "critical path, AIME24"
    unit: str
    published: float
    simulated: float | None  # None: cannot be reproduced; `reason` says why
    tolerance: float | None
    relation: str = "equals"
    status: str = "verbatim"
    source: str = ""  # paper, table
    setup: str = ""  # what was flown: command line or parameters
    assumed: tuple[str, ...] = ()  # what the paper does not state
    reason: str = ""  # why there is no target, or no simulated value; or a remark
    known_miss: str = ""  # why a figure outside its tolerance is so
    kind: str = "prediction"  # one of KINDS
    spread: float | None = None  # standard error of `simulated`, where it is a mean over draws

    def __post_init__(self) -> None:
        """ValueError for a comparison that cannot be judged as it is written."""
        where = f"comparison '{self.strategy}: {self.quantity}'"
        if self.relation not in RELATIONS:
            raise ValueError(f"{where}: relation is '{self.relation}', expected one of {', '.join(RELATIONS)}")
        if self.status not in STATUSES:
            raise ValueError(f"{where}: status is '{self.status}', expected one of {', '.join(STATUSES)}")
        if self.kind not in KINDS:
            raise ValueError(f"{where}: kind is '{self.kind}', expected one of {', '.join(KINDS)}")
        if self.known_miss and not self.judged:
            raise ValueError(f"{where} has a known_miss, but is not judged: no tolerance, or a secondary figure")
        if not isinstance(self.assumed, tuple):
            raise ValueError(f"{where}: assumed is {self.assumed!r}, expected a tuple of sentences")
        if not math.isfinite(self.published):
            raise ValueError(f"{where}: published is {self.published}, expected a finite number")
        if self.simulated is not None and not math.isfinite(self.simulated):
            raise ValueError(f"{where}: simulated is {self.simulated}, expected a finite number or None")
        if self.tolerance is not None and not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"{where}: tolerance is {self.tolerance}, expected a finite number of at least 0, or None")
        if self.tolerance is not None and self.simulated is None:
            raise ValueError(f"{where} has a tolerance and no simulated value; expected neither or a value")

    @property
    def error(self) -> float | None:
        """simulated / published - 1; None without a simulated value, or against a published zero."""
        if self.simulated is None or self.published == 0:
            return None
        return self.simulated / self.published - 1.0

    @property
    def judged(self) -> bool:
        """Whether it has a verdict: there is a target, and the figure is the authors' own or computed from theirs."""
        return self.tolerance is not None and self.status != "secondary"

    @property
    def within(self) -> bool | None:
        """Whether the simulated value keeps to the published one, judged or not; None without a tolerance."""
        if self.tolerance is None:
            return None
        slack = (self.tolerance + ROUNDING) * abs(self.published)
        apart = self.simulated - self.published
        if self.relation == "at most":
            return apart <= slack
        if self.relation == "at least":
            return apart >= -slack
        return abs(apart) <= slack

    @property
    def met(self) -> bool | None:
        """`within` of a judged figure; None of others."""
        return self.within if self.judged else None

    @property
    def stale(self) -> bool:
        """Whether it is said why the figure is missed, while it is met."""
        return bool(self.known_miss) and self.met is True

    @property
    def verdict(self) -> str:
        """One of VERDICTS: judged ones are met or missed; others are shown (reported), or have no simulated value."""
        if not self.judged:
            return "reported" if self.simulated is not None else "not reproduced"
        if self.met:
            return "met"
        return EXPLAINED if self.known_miss else MISSED
