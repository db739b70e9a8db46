"""One metric over one sweep, measured and simulated side by side: what the checks of shape look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.points import spread_kind
from calibration.records import METRICS
from validate.cases import Case, Evidence
from validate.sweeps import MIN_POINTS

# A figure of another quantity than time, rate or power: nothing has to move with it.
_STATIC = ("kv_capacity_tok",)
CURVE_METRICS = tuple(name for name in METRICS if name not in _STATIC)


@dataclass(frozen=True)
class Curve:
    """Arrays of shape (n,), ascending in x; what is not known of a run is nan. `measured` is always known.

    expected: our own prediction, whoever speaks for the simulated side; floor: of the data sheet.
    """

    axis: str
    metric: str
    cases: tuple[Case, ...]
    x: np.ndarray
    measured: np.ndarray
    simulated: np.ndarray
    expected: np.ndarray
    floor: np.ndarray

    @property
    def title(self) -> str:
        """What was swept, for a sentence: model, GPU and metric."""
        record = self.cases[0].record
        return f"{self.metric} of {record.model.split('/')[-1]} on {record.gpu}"

    @property
    def simulated_runs(self) -> np.ndarray:
        """Which runs have a simulated figure, shape (n,)."""
        return np.isfinite(self.simulated)

    def ids(self, index: Sequence[int] | np.ndarray | None = None) -> tuple[str, ...]:
        """Run ids, of all points or some, by index or mask."""
        chosen = np.arange(len(self.cases)) if index is None else np.arange(len(self.cases))[index]
        return tuple(self.cases[i].id for i in chosen)

    def at(self, chosen: np.ndarray) -> Curve:
        """The points of a mask."""
        cases = tuple(case for case, keep in zip(self.cases, chosen) if keep)
        arrays = (self.x, self.measured, self.simulated, self.expected, self.floor)
        return Curve(self.axis, self.metric, cases, *(array[chosen] for array in arrays))


def is_queued(curve: Curve) -> bool:
    """Whether it is of first tokens behind other requests: queueing multiplies every error."""
    setup = curve.cases[0].setup
    return setup is not None and spread_kind(setup, curve.metric) == "ttft_served"


def curves_of(evidence: Evidence, metrics: Sequence[str] = CURVE_METRICS, axes: Sequence[str] = ()) -> Iterator[Curve]:
    """Every sweep of every metric that was measured at three places at least; of some axes only if they are named."""
    for sweep in evidence.sweeps:
        if axes and sweep.axis not in axes:
            continue
        for metric in metrics:
            rows = [row for row in sweep.values(metric) if row[0] > 0.0]
            if len({x for x, *_ in rows}) >= MIN_POINTS:
                yield _curve(evidence, sweep.axis, metric, rows)


def _curve(evidence: Evidence, axis: str, metric: str, rows: Sequence[tuple]) -> Curve:
    cases = tuple(evidence.by_id[run.run_id] for *_, run in rows)
    theirs = [getattr(case.simulated, metric, None) for case in cases]
    ours = [case.prediction.outcome.values.get(metric) for case in cases]
    floors = [case.floor.get(metric) for case in cases]
    x, measured = np.array([row[:2] for row in rows], dtype=float).T
    return Curve(axis, metric, cases, x, measured, _known(theirs), _known(ours), _known(floors))


def _known(values: Sequence[float | None]) -> np.ndarray:
    """As an array; nan for what is missing, zero or not finite: logarithms are taken of it."""
    found = np.array([np.nan if value is None else value for value in values], dtype=float)
    return np.where(np.isfinite(found) & (found > 0.0), found, np.nan)
