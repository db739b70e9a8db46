"""Which runs of a file an injected fault touches, and how their records or simulated figures are replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.injection import Apply, Injected
from validate.suite import with_cases

Change = Callable[[RunRecord, float], RunRecord | None]


def measured(change: Change, fewest: int = 1) -> Apply:
    """Every run of the file that `change` changes; None from it, or an equal record, leaves a run alone."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        return replaced(bench, evidence, evidence.cases, lambda case: change(case.record, size), fewest)

    return apply


def some_measured(change: Change, n: int = 1, fits: Callable[[Case], bool] = lambda case: True) -> Apply:
    """The same for n runs, drawn among those that fit and that `change` changes."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        drawn = draw([c for c in evidence.cases if fits(c) and change(c.record, size) not in (None, c.record)], n, rng)
        return replaced(bench, evidence, drawn, lambda case: change(case.record, size), n)

    return apply


def simulated(change: Callable[[Case, float], RunRecord | None], fewest: int = 3) -> Apply:
    """Every run whose simulated side `change` changes."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        new = {
            c.id: found for c in evidence.cases if c.simulated and (found := change(c, size)) not in (None, c.simulated)
        }
        return resimulated(evidence, new, fewest)

    return apply


def replaced(
    bench: Bench,
    evidence: Evidence,
    cases: Iterable[Case],
    change: Callable[[Case], RunRecord | None],
    fewest: int = 1,
    log_size: float | None = None,
) -> Injected | None:
    """`cases` with changed records; None when fewer than `fewest` change."""
    new = {case.id: found for case in cases if (found := change(case)) not in (None, case.record)}
    if len(new) < fewest:
        return None
    return Injected(bench.changed(evidence, new), tuple(new), log_size)


def resimulated(
    evidence: Evidence, new: dict[str, RunRecord], fewest: int = 1, log_size: float | None = None
) -> Injected | None:
    """Other simulated sides, by run id; None when fewer than `fewest`."""
    if len(new) < fewest:
        return None
    cases = [replace(case, simulated=new.get(case.id, case.simulated)) for case in evidence.cases]
    return Injected(with_cases(evidence, cases), tuple(new), log_size)


def draw(cases: Sequence[Case], n: int, rng: np.random.Generator) -> list[Case]:
    """n of these cases, fewer if there are not so many; in the file's order."""
    if not cases:
        return []
    picks = rng.choice(len(cases), min(n, len(cases)), replace=False)
    return [cases[i] for i in sorted(picks.tolist())]


def as_run_under(bench: Bench, case: Case, ran: RunRecord) -> RunRecord | None:
    """What would have been measured had the run been configured as `ran`, under the label that it has.

    Measured figures times what the simulator says that the difference makes. None where it cannot say.
    """
    said, other = case.prediction.outcome.values, bench.predict(ran).outcome.values
    factors = {
        name: other[name] / said[name]
        for name in case.measured
        if said.get(name) and other.get(name) and name != "kv_capacity_tok"
    }
    if not factors:
        return None
    return with_figures(case.record, {name: case.measured[name] * factor for name, factor in factors.items()})


def with_figures(record: RunRecord, figures: dict[str, float | None]) -> RunRecord:
    """The record with some measured figures changed."""
    return msgspec.structs.replace(record, **figures)
