"""Everything that a fit of one engine family yields: times, power, errors with models left out, spreads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.fleet import Fleet
from calibration.joint_fit import FREE_POWER
from calibration.points import POWER_METRIC, Point, architecture_key, points_of, spread_kind
from calibration.regressor import ServingModel, prior_calibrations
from calibration.setup import Setup, kv_may_bind
from simulator.errors import UserError
from simulator.profile import Z90, Calibration

Progress = Callable[[int, int], None]
# Metrics that a ledger judges; tails (p99) and what only repeats another metric are left out.
JUDGED = (
    "ttft_s_mean", "ttft_s_median", "tpot_s_mean", "tpot_s_median", "itl_s_mean", "itl_s_median", "e2e_s_mean",
    "e2e_s_median", "output_tok_per_s", "power_w", "energy_j_per_output_tok", "batch_mean",
)  # fmt: skip
# No interval claims less than this: sensors, clocks and versions move results by a few per cent between boards.
FLOOR_LOG_SD = 0.03


@dataclass(frozen=True)
class Prediction:
    """One judged number: in-sample, and with its model left out of the fit (None: nothing else to fit on)."""

    setup: Setup
    metric: str
    measured: float
    in_sample: float
    left_out: float | None


@dataclass
class FamilyFit:
    """The fit of one engine family. `log_sd`: spread by kind of metric, from errors with models left out."""

    family: str
    fleet: Fleet
    points: list[Point]
    power_points: list[Point]
    times: ServingModel
    power: ServingModel | None
    predictions: list[Prediction] = field(default_factory=list)
    log_sd: dict[str, float] = field(default_factory=dict)

    @property
    def fitted(self) -> bool:
        """Whether anything was fitted at all."""
        return bool(self.times.names_)

    @property
    def values(self) -> Mapping[str, float]:
        """Fitted values of times and power by name."""
        return (self.power or self.times).fit_.solution.values

    @property
    def gpus(self) -> list[str]:
        """GPUs with runs, sorted."""
        return sorted({setup.device.id for setup in self.fleet.setups})


def judged_metrics(setup: Setup) -> list[str]:
    """The measured metrics of a run that are predicted and judged."""
    measured = setup.record.measured()
    without = ("tpot", "itl") if setup.output_tok < 2 else ()
    if not kv_may_bind(setup):  # then the mean batch is what the engine was allowed
        without = (*without, "batch_mean")
    return [name for name in JUDGED if name in measured and not name.startswith(without)]


def fit_family(
    setups: Sequence[Setup],
    leave_out: bool = True,
    jobs: int = 1,
    progress: Progress | None = None,
    priors: Mapping[str, Calibration] | None = None,
    few: int = 0,
) -> FamilyFit:
    """Fit times and then power on the runs of one engine family; predict every run in-sample and left out.

    few: with fewer runs than this nothing is fitted and the priors stand. priors: calibration by GPU id (default:
    kernels and the engine's overheads from before any fit). UserError when no run can be used. `progress(done, total)`
    counts scheduled runs and fits.
    """
    count = _Count(progress, len(setups), len({architecture_key(s) for s in setups}) * leave_out)
    fleet = Fleet(setups, lambda setup: [*judged_metrics(setup), *_fitted_names(setup)], count.scheduled)
    if not fleet.setups:
        reasons = sorted(set(fleet.refused.values()))
        raise UserError(f"no usable rows to fit{': ' + reasons[0] if reasons else ''}")
    points, power_points = points_of(fleet.setups), points_of(fleet.setups, power=True)
    priors = priors or prior_calibrations(fleet.setups)
    names = [] if len(fleet.setups) < few else None
    times = ServingModel(names, priors=priors, fleet=fleet).fit(points)
    count.fitted()
    power = None if names == [] else _fit_power(times, power_points, times.fit_.solution.values)
    result = FamilyFit(fleet.setups[0].family.id, fleet, points, power_points, times, power)
    left = _left_out(result, jobs, count.fitted) if leave_out and names is None else {}
    result.predictions = _predictions(result, left)
    result.log_sd = spreads(result.predictions)
    return result


class _Count:
    """Progress over scheduling and fitting as one bar."""

    def __init__(self, progress: Progress | None, runs: int, groups: int) -> None:
        self._progress, self._runs, self._total, self._done = progress, runs, runs + groups + 1, runs

    def scheduled(self, done: int, total: int) -> None:
        if self._progress:
            self._progress(done, self._total)

    def fitted(self, *_: int) -> None:
        self._done += 1
        if self._progress:
            self._progress(min(self._done, self._total), self._total)


def _fitted_names(setup: Setup) -> list[str]:
    return [point.metric for power in (False, True) for point in points_of([setup], power)]


def _fit_power(times: ServingModel, points: Sequence[Point], values: Mapping[str, float]) -> ServingModel | None:
    """Power parameters of every GPU with power rows, times being fitted already."""
    gpus = sorted({point.setup.device.id for point in points})
    if not gpus:
        return None
    names = [f"{gpu}/power.{name}" for gpu in gpus for name in FREE_POWER]
    return ServingModel(names, dict(values), times.priors_, times.fleet_).fit(points)


def _left_out(result: FamilyFit, jobs: int, done: Callable[..., None]) -> dict[Hashable, Mapping[str, float]]:
    """Parameter values fitted without each architecture."""
    found = result.times.cross_validate(result.points, jobs=jobs, progress=done)
    out: dict[Hashable, Mapping[str, float]] = {}
    for group, model in found.items():
        kept = [point for point in result.power_points if architecture_key(point.setup) != group]
        power = _fit_power(model, kept, model.fit_.solution.values)
        out[group] = (power or model).fit_.solution.values
    return out


def _predictions(result: FamilyFit, left: Mapping[Hashable, Mapping[str, float]]) -> list[Prediction]:
    inside = _run_values(result, result.values)
    outside = {group: _run_values(result, values) for group, values in left.items()}
    out = []
    for index, setup in enumerate(result.fleet.setups):
        group = architecture_key(setup)
        for metric in judged_metrics(setup):
            if metric in inside[index]:
                held = outside[group][index][metric] if group in outside else None
                value = setup.record.measured()[metric]
                out.append(Prediction(setup, metric, value, inside[index][metric], held))
    return out


def _run_values(result: FamilyFit, values: Mapping[str, float]) -> list[Mapping[str, float]]:
    from calibration.joint_fit import Problem

    return Problem(result.fleet, [], result.times.priors_).runs(values)


def spreads(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Standard deviation of log(measured / predicted) by kind of metric: 90 % of the errors lie within 1.645 of it.

    Errors are those with the model left out, or in-sample where nothing could be left out. A row of a set (a model on a
    GPU in one campaign) weighs 1 / sqrt(rows of the set), so that large sets do not speak for all.
    """
    by_kind: dict[str, list[tuple[float, tuple]]] = {}
    for p in predictions:
        value = p.in_sample if p.left_out is None else p.left_out
        key = (p.setup.record.source, p.setup.device.id, p.setup.record.model, p.metric, p.setup.record.campaign)
        by_kind.setdefault(spread_kind(p.setup, p.metric), []).append((abs(np.log(value / p.measured)), key))
    out = {}
    for kind, found in by_kind.items():
        sizes: dict[tuple, int] = {}
        for _, key in found:
            sizes[key] = sizes.get(key, 0) + 1
        errors = np.array([error for error, _ in found])
        weights = np.array([sizes[key] ** -0.5 for _, key in found])
        out[kind] = max(FLOOR_LOG_SD, _weighted_quantile(errors, weights, 0.9) / Z90)
    return out


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    order = np.argsort(values, kind="stable")
    middle = np.cumsum(weights[order]) - weights[order] / 2.0
    return float(np.interp(q, middle / weights.sum(), values[order]))


__all__ = ["JUDGED", "POWER_METRIC", "FamilyFit", "Prediction", "fit_family", "judged_metrics", "spreads"]
