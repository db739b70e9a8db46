"""What the simulator expects of points before they are measured: how long they last, what they would tell.

A point tells of a parameter what its predicted latencies change by when the parameter changes. Predictions are those
of `calibrate fit`: the same parameters, priors and metrics, so that a plan is good for the fit that comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.collect.point import EngineFacts, Point
from calibration.collect.to_records import configuration
from calibration.fleet import Fleet
from calibration.joint_fit import Problem, free_names, specs_of, start_of
from calibration.points import points_of
from calibration.records import RunRecord
from calibration.regressor import prior_calibrations
from calibration.setup import Setup, Unsupported, resolve
from simulator.errors import UserError
from simulator.kernels.spec import ParameterSpec

_STEP = 1e-3  # of a parameter's logarithm
_METRICS = ("ttft_s_mean", "tpot_s_mean")


@dataclass(frozen=True)
class Expected:
    """C points and P parameters. `rows[c]` has a line per metric of point c: d log(metric) / d log(parameter) / sd."""

    points: tuple[Point, ...]
    seconds: np.ndarray  # (C,) of one run
    rows: tuple[np.ndarray, ...]  # (metrics, P) each
    names: tuple[str, ...]  # of the parameters
    prior_log_sd: np.ndarray  # (P,)
    refused: tuple[str, ...] = ()  # points that the simulator cannot predict, and why
    warm_up_s: np.ndarray | None = None  # (C,) of one warm-up; None: as long as a run

    def take(self, chosen: Sequence[int]) -> Expected:
        """The same for some of the points."""
        return Expected(
            tuple(self.points[i] for i in chosen), self.seconds[list(chosen)], tuple(self.rows[i] for i in chosen),
            self.names, self.prior_log_sd,
            warm_up_s=None if self.warm_up_s is None else self.warm_up_s[list(chosen)],
        )  # fmt: skip


def expect(
    points: Sequence[Point], facts: EngineFacts, gpu: str, power_mode: str | None, left_out: tuple[str, ...] = ()
) -> Expected:
    """Predict points under what is known before they are measured. UserError when none can be predicted.

    left_out: what is to be said of points that were left out before.
    """
    setups, refused = _setups(points, facts, gpu, power_mode)
    fleet = Fleet([setup for _, setup in setups], lambda setup: [*_metrics(setup), "duration_s"])
    refused += [f"{name}: {why}" for name, why in fleet.refused.items()]
    kept = [point for point, setup in setups if setup.record.run_id not in fleet.refused]
    if not fleet.setups:
        raise UserError(f"none of {len(points)} points can be planned: {refused[0]}")
    priors = prior_calibrations(fleet.setups, fitted=True)
    names = free_names(fleet, priors, _METRICS)
    specs = specs_of(names, priors)
    # Each alone: how many rows share an error is not known before some are chosen.
    problem = Problem(fleet, [metric for setup in fleet.setups for metric in points_of([setup])], priors)
    start = start_of(names, priors)
    seconds = np.array([run["duration_s"] for run in problem.runs(start)])
    changes = _jacobian(problem, start, specs) / problem.sd[:, None]
    place = {setup.record.run_id: i for i, setup in enumerate(fleet.setups)}
    member = np.array([place[point.setup.record.run_id] for point in problem.points])
    return Expected(
        points=tuple(kept),
        seconds=seconds,
        rows=tuple(changes[member == i] for i in range(len(kept))),
        names=tuple(names),
        prior_log_sd=np.array([specs[name].log_sd for name in names]),
        refused=(*left_out, *refused),
    )


def _setups(
    points: Sequence[Point], facts: EngineFacts, gpu: str, power_mode: str | None
) -> tuple[list[tuple[Point, Setup]], list[str]]:
    """Points with what they resolve to, and why others do not."""
    found, refused = [], []
    for point in points:
        record = RunRecord(
            run_id=point.key, source="collect", gpu=gpu, power_mode=power_mode, ttft_s_mean=1.0,
            tpot_s_mean=1.0 if point.output_tok > 1 else None, **configuration(point, facts),
        )  # fmt: skip
        try:
            found.append((point, resolve(record)))
        except Unsupported as error:
            refused.append(f"{point.key}: {error}")
    return found, refused


def _metrics(setup: Setup) -> list[str]:
    return [name for name in _METRICS if name in setup.record.measured()]


def _jacobian(problem: Problem, start: Mapping[str, float], specs: Mapping[str, ParameterSpec]) -> np.ndarray:
    """d log(metric) / d log(parameter) of every metric of the problem, shape (metrics, P)."""
    here = np.log(problem.predict(start))
    columns = []
    for name, value in start.items():
        step = _STEP if value * np.exp(_STEP) < specs[name].upper else -_STEP
        moved = {**start, name: value * float(np.exp(step))}
        columns.append((np.log(problem.predict(moved)) - here) / step)
    return np.stack(columns, axis=1)
