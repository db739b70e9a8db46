"""The cost model as a scikit-learn estimator: fit, predict, score, and cross-validation over groups of runs.

X is a sequence of `calibration.points.Point` (a metric of a measured run), y the measured values (default: those of the
points). One estimator covers one engine family on any number of GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator

from calibration.fleet import Fleet
from calibration.joint_fit import JointFit, Problem, free_names
from calibration.least_squares import Solution
from calibration.points import Point, architecture_key
from calibration.setup import Setup
from simulator.errors import UserError
from simulator.profile import Calibration
from simulator.profile_choice import at_device
from simulator.profile_parts import compose

Progress = Callable[[int, None], None]


def prior_calibrations(setups: Sequence[Setup], fitted: bool = False) -> dict[str, Calibration]:
    """What is known of each GPU before these runs are fitted, by GPU id: its kernels and the engine's overheads.

    fitted: take the overheads that earlier fits of the engine found, instead of those from before any fit.
    """
    out: dict[str, Calibration] = {}
    for setup in setups:
        device = setup.device
        if device.id not in out:
            default = device.at_mode(device.default_power_mode) if device.default_power_mode else device
            out[device.id] = at_device(compose(default, setup.family.engine, setup.version, fitted), default)
    return out


class ServingModel(BaseEstimator):
    """Maximum a posteriori fit of the parameters that runs can tell, on the logarithm of predicted / measured.

    names: parameters to fit (default: those the runs exercise; none: the priors stand). fixed: values of others.
    priors: calibration by GPU id (default: `prior_calibrations`). fleet: the scheduled runs (default: those of X are
    scheduled). begin: where the search starts. Fitted: `fit_` (a JointFit), `fleet_`, `priors_`, `names_`.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        fixed: Mapping[str, float] | None = None,
        priors: Mapping[str, Calibration] | None = None,
        fleet: Fleet | None = None,
        begin: Mapping[str, float] | None = None,
        max_evaluations: int = 30,
        progress: Progress | None = None,
    ) -> None:
        self.names, self.fixed, self.priors, self.fleet = names, fixed, priors, fleet
        self.begin, self.max_evaluations, self.progress = begin, max_evaluations, progress

    def fit(self, X: Sequence[Point], y: np.ndarray | None = None) -> ServingModel:
        """Fit to the points X. UserError without points."""
        if not len(X):
            raise UserError("no usable rows to fit: expected runs that state their load, lengths and a latency")
        self.fleet_ = self.fleet or schedule_points(X)
        self.priors_ = dict(self.priors or prior_calibrations(self.fleet_.setups))
        metrics = {point.metric for point in X}
        free = free_names(self.fleet_, self.priors_, metrics) if self.names is None else self.names
        self.names_ = list(free)
        if not self.names_:
            values = dict(self.fixed or {})
            self.fit_ = JointFit(self.priors_, Solution(values, {}, np.empty((0, 0)), 0, True, ()))
            return self
        problem = Problem(self.fleet_, X, self.priors_, y)
        self.fit_: JointFit = problem.solve(
            self.names_, fixed=self.fixed, begin=self.begin, progress=self.progress,
            max_evaluations=self.max_evaluations,
        )  # fmt: skip
        return self

    def predict(self, X: Sequence[Point]) -> np.ndarray:
        """The metric of every point, in its own unit."""
        return Problem(self.fleet_, X, self.priors_).predict(self.fit_.solution.values)

    def errors(self, X: Sequence[Point]) -> np.ndarray:
        """log(predicted / measured) of every point."""
        return Problem(self.fleet_, X, self.priors_).errors(self.fit_.solution.values)

    def score(self, X: Sequence[Point], y: np.ndarray | None = None) -> float:
        """Minus the median of |log(predicted / measured)|: 0 is perfect, -0.05 about 5 % off."""
        return -float(np.median(np.abs(Problem(self.fleet_, X, self.priors_, y).errors(self.fit_.solution.values))))

    def cross_validate(
        self,
        X: Sequence[Point],
        group_of: Callable[[Point], Hashable] = lambda point: architecture_key(point.setup),
        jobs: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[Hashable, ServingModel]:
        """For every group of points a model fitted on all the others, by group; empty for fewer than two groups.

        By default points of equal architectures are left out together, on all GPUs and from all sources. The searches
        start at this model's fit, which they leave for the optimum of what they see.
        """
        groups = list(dict.fromkeys(group_of(point) for point in X))
        if len(groups) < 2:
            return {}

        def without(group: Hashable) -> ServingModel:
            kept = [point for point in X if group_of(point) != group]
            model = ServingModel(
                self.names_, self.fixed, self.priors_, self.fleet_, self.fit_.solution.values, self.max_evaluations
            )
            return model.fit(kept)

        out: dict[Hashable, ServingModel] = {}
        for start in range(0, len(groups), jobs):
            some = groups[start : start + jobs]
            found = Parallel(n_jobs=jobs)(delayed(without)(group) for group in some) if jobs > 1 else map(without, some)
            out |= dict(zip(some, found))
            if progress:
                progress(len(out), len(groups))
        return out


def schedule_points(points: Sequence[Point], progress: Callable[[int, int], None] | None = None) -> Fleet:
    """The runs of the points, scheduled, for the metrics that the points name."""
    wanted: dict[int, list[str]] = {}
    setups: dict[int, Setup] = {}
    for point in points:
        wanted.setdefault(id(point.setup), []).append(point.metric)
        setups[id(point.setup)] = point.setup
    return Fleet(list(setups.values()), lambda setup: wanted[id(setup)], progress)
