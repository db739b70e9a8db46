"""What a self-test found: the detection matrix, false alarms, and whether the targets are met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from validate.finding import fault_classes
from validate.self_test.injection import Injector, Size
from validate.self_test.shipped_runs import FileCheck, share
from validate.self_test.trial import Trial

LARGE = 2.0  # noise floors: from here on a fault is to be found
# Targets of the suite, fixed before it was tested.
DETECTED, RIGHT, FALSE_ALARMS, CAUGHT = 0.95, 0.85, 0.02, 0.90


@dataclass(frozen=True)
class Cell:
    """One line of the matrix: a kind of fault at one magnitude, over all materials and draws."""

    injector: Injector
    size: Size
    trials: tuple[Trial, ...]

    @property
    def n(self) -> int:
        """Injections."""
        return len(self.trials)

    @property
    def detected(self) -> int:
        """Injections with a new alarm on an injected run."""
        return sum(trial.detected for trial in self.trials)

    @property
    def right(self) -> int:
        """Injections whose strongest new finding names the class."""
        return sum(trial.right for trial in self.trials)

    @property
    def mentioned(self) -> int:
        """Injections of which any new finding names the class."""
        return sum(trial.mentioned for trial in self.trials)

    @property
    def documented(self) -> bool:
        """Whether a labelled case documents this magnitude; of a class without cases, every magnitude."""
        return bool(self.size.case) or self.injector.fault in ("F11", "F13")

    def units(self, of: str) -> float | None:
        """Size in noise floors: the median over the injections that have one. of: "in_noise" or "in_floor"."""
        found = [value for trial in self.trials if (value := getattr(trial, of)) is not None]
        return float(np.median(found)) if found else None

    @property
    def small(self) -> bool:
        """Whether it is below two noise floors: not to be told from clean runs by any sound rule."""
        units = self.units("in_floor")
        return units is not None and units < LARGE

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        i = self.injector
        return {
            "fault": i.fault, "kind": i.kind, "side": i.side, "view": i.view, "right_classes": sorted(i.right),
            "magnitude": self.size.text, "case": self.size.case, "in_repeat_noise": self.units("in_noise"),
            "in_noise_floors": self.units("in_floor"), "injected": self.n, "detected": self.detected,
            "classified_right": self.right, "named_by_any": self.mentioned, "missed": self.n - self.detected,
            "materials": sorted({trial.material for trial in self.trials}),
            "found_by": dict(Counter(t.check for t in self.trials if t.check).most_common()),
            "trials": [asdict(trial) for trial in self.trials],
        }  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One thing that the suite must show. value: what it shows, as text."""

    says: str
    value: str
    passed: bool


@dataclass(frozen=True)
class Outcome:
    """Everything that one self-test found."""

    seed: int
    cells: tuple[Cell, ...]
    files: tuple[FileCheck, ...]
    synthetic_clean: dict[str, tuple[int, int]]  # runs of each simulated campaign, and those in an alarm when clean

    @cached_property
    def large(self) -> tuple[Trial, ...]:
        """Injections of at least two noise floors, and those that have no size."""
        return tuple(t for cell in self.cells for t in cell.trials if t.in_floor is None or t.in_floor >= LARGE)

    @property
    def beside(self) -> tuple[tuple[str, str], ...]:
        """Shares that are no target but say how the targets read: (what, share)."""
        trials = [t for cell in self.cells for t in cell.trials]
        noisy = [t for t in trials if t.in_noise is None or t.in_noise >= LARGE]
        small = [t for t in trials if t.in_floor is not None and t.in_floor < LARGE]
        sized = [t for t in self.large if t.in_floor is not None]
        found = [t for t in self.large if t.detected]
        worst = max(self.files, key=lambda f: len(f.alarmed) / max(f.clean, 1), default=None)
        of_worst = (
            ()
            if worst is None
            else ((f"clean runs in an alarm, worst file ({worst.name})", len(worst.alarmed), worst.clean),)
        )
        shares = (
            *of_worst,
            ("detected, of magnitudes >= 2 spreads of repeats", sum(t.detected for t in noisy), len(noisy)),
            ("detected, of those below 2 noise floors", sum(t.detected for t in small), len(small)),
            ("detected, of those >= 2 floors that have a size", sum(t.detected for t in sized), len(sized)),
            ("right class in any new finding, >= 2 floors", sum(t.mentioned for t in found), len(found)),
            ("right class in the strongest, of all injected >= 2 floors", sum(t.right for t in found), len(self.large)),
        )
        return tuple((says, shown_share(hits, n)) for says, hits, n in shares)

    @property
    def false_alarms(self) -> tuple[int, int]:
        """(clean shipped runs in an alarm, clean shipped runs)."""
        return sum(len(f.alarmed) for f in self.files), sum(f.clean for f in self.files)

    @property
    def suspects(self) -> tuple[int, int]:
        """(suspect runs in an alarm, suspect runs)."""
        return sum(sum(f.caught.values()) for f in self.files), sum(sum(f.suspects.values()) for f in self.files)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """In the order of the issue of this suite."""
        return tuple(self._targets())

    @property
    def passed(self) -> bool:
        """Whether every target is met."""
        return all(target.passed for target in self.targets)

    def _targets(self) -> Iterable[Target]:
        shown = [cell for cell in self.cells if cell.documented and not cell.small]
        missed = [cell for cell in shown if 2 * cell.detected < cell.n]
        classes = {cell.injector.fault for cell in shown}
        failed = {cell.injector.fault for cell in missed}
        untested = fault_classes().keys() - classes
        said = f"{len(classes - failed)} of {len(fault_classes())} classes"
        missing = "; ".join(f"{c.injector.fault} {c.injector.kind} {c.size.text}" for c in missed)
        yield Target(
            "every class detected at its documented magnitudes (in half of the injections)",
            said + ("; missed: " + missing if missing else ""),
            not failed and not untested,
        )  # fmt: skip
        detected = sum(t.detected for t in self.large)
        yield _at_least("detected, of magnitudes >= 2 noise floors", detected, len(self.large), DETECTED)
        yield _at_least("right class in the strongest finding", sum(t.right for t in self.large), detected, RIGHT)
        yield _at_most("clean shipped runs in an alarm", *self.false_alarms, FALSE_ALARMS)
        yield _at_least("shipped runs flagged suspect that stand in an alarm", *self.suspects, CAUGHT)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; `matrix` has one row per kind and magnitude."""
        return {
            "seed": self.seed,
            "passed": self.passed,
            "targets": [asdict(target) for target in self.targets],
            "beside": dict(self.beside),
            "false_alarms": [_file_dict(f) for f in self.files],
            "simulated_clean_runs": {n: {"runs": a, "alarmed": b} for n, (a, b) in self.synthetic_clean.items()},
            "matrix": [cell.to_dict() for cell in self.cells],
        }


def _file_dict(f: FileCheck) -> dict[str, Any]:
    found = share(len(f.alarmed), f.clean)
    interval = {} if found is None else {"share": found.value, "low": found.low, "high": found.high}
    return asdict(f) | interval


def _at_least(says: str, hits: int, n: int, limit: float) -> Target:
    return Target(f"{says}: at least {limit:.0%}", shown_share(hits, n), n > 0 and hits >= limit * n)


def _at_most(says: str, hits: int, n: int, limit: float) -> Target:
    return Target(f"{says}: at most {limit:.0%}", shown_share(hits, n), n > 0 and hits <= limit * n)


def shown_share(hits: int, n: int) -> str:
    """ "12 of 340, 3.5 % (1.8 to 6.1)"."""
    found = share(hits, n)
    if found is None:
        return "none"
    return f"{hits} of {n}, {100 * found.value:.1f}% ({100 * found.low:.1f} to {100 * found.high:.1f})"


def by_class(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by class, in their order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.injector.fault, []).append(cell)
    return found
