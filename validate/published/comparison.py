"""One published figure beside what the simulator says."""

from __future__ import annotations

import math
from dataclasses import dataclass

RELATIONS = ("equals", "at most", "at least")
ROUNDING = 1e-9  # relative: sums of floats that should be equal
STATUSES = ("verbatim", "derived", "secondary")  # as the authors print it; computed from that; quoted by a third party


@dataclass(frozen=True)
class Comparison:
    """A published figure, the simulated one, and how far apart they may be.

    `tolerance` is relative (0.10 = 10 %); None: the figure is shown, and nothing is asserted about it.
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
    reason: str = ""  # why it is not asserted, not reproduced, or off

    def __post_init__(self) -> None:
        """ValueError for a comparison that cannot be judged as it is written."""
        where = f"comparison '{self.strategy}: {self.quantity}'"
        if self.relation not in RELATIONS:
            raise ValueError(f"{where}: relation is '{self.relation}', expected one of {', '.join(RELATIONS)}")
        if self.status not in STATUSES:
            raise ValueError(f"{where}: status is '{self.status}', expected one of {', '.join(STATUSES)}")
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
    def asserted(self) -> bool:
        """Whether it is judged: it has a tolerance, and the figure is the authors' own or computed from theirs."""
        return self.tolerance is not None and self.status != "secondary"

    @property
    def met(self) -> bool | None:
        """Whether the simulated value keeps to the published one; None if that is not asserted."""
        if not self.asserted:
            return None
        slack = (self.tolerance + ROUNDING) * abs(self.published)
        apart = self.simulated - self.published
        if self.relation == "at most":
            return apart <= slack
        if self.relation == "at least":
            return apart >= -slack
        return abs(apart) <= slack

    @property
    def verdict(self) -> str:
        """met, missed, reported (shown, not judged) or not reproduced."""
        if self.asserted:
            return "met" if self.met else "missed"
        return "reported" if self.simulated is not None else "not reproduced"
