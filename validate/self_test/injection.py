"""What an injected fault is: which class, which kind, how large, and where it is put."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from validate.cases import Evidence

if TYPE_CHECKING:
    from validate.self_test.bench import Bench

# Classes that the suite names without alarm, by design: a label on the right runs is what a reader needs, the run
# itself is not at fault.
LABELLED = frozenset(("F10", "F11", "F13"))


@dataclass(frozen=True)
class Size:
    """One magnitude. value: as `Injector.apply` reads it. case: the labelled case that documents it, if any."""

    value: float
    text: str
    case: str = ""


@dataclass(frozen=True)
class Injected:
    """Evidence with a fault in it. runs: ids of the runs that carry it. log_size: |log| of the error, where the change
    of the figures does not say it (a run moved to below a bound is wrong by what it beats the bound by)."""

    evidence: Evidence
    runs: tuple[str, ...]
    log_size: float | None = None


Apply = Callable[["Bench", Evidence, float, np.random.Generator], Injected | None]


@dataclass(frozen=True, kw_only=True)
class Injector:
    """One kind of fault.

    side: "measurement", or "simulated" for a fault of another simulator's file. view: "record" where the measured
    figures alone betray it (it is held against the spread of repeats), "pair" where only the comparison with a
    simulation or with neighbours can (against what clean pairs may differ by), "label" where no figure is off: it has
    no size. also: further classes that the labelled cases give this kind, each a right name. label: the check whose
    note is what the taxonomy asks for, where that is a label and no alarm. draws: independent draws of the runs that
    carry it, for each material and magnitude.
    """

    fault: str
    kind: str
    apply: Apply
    materials: tuple[str, ...]
    sizes: tuple[Size, ...]
    side: str = "measurement"
    view: str = "pair"
    also: tuple[str, ...] = ()
    draws: int = 1
    label: str = ""

    @property
    def right(self) -> frozenset[str]:
        """Classes that name this fault rightly."""
        return frozenset((self.fault, *self.also))
