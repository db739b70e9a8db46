"""Fit a profile to measured runs: robust bounded least squares of physically named parameters.

Times first, on log(predicted / measured); then power, which is linear in its parameters. Every parameter has a prior
(the profile the fit starts from) and a prior spread; what the data do not narrow is reported and kept at its prior.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from calibration.records import RunRecord
from calibration.replay import Setup, StepModels, Unsupported, replay, resolve
from simulator.errors import UserError
from simulator.memory import plan_memory
from simulator.profile import PARAMETERS, Calibration, Parameters
from simulator.profile_choice import at_device

# Spread of the prior of each fitted time parameter, as a standard deviation of its logarithm. Ceilings were measured
# (tight); prefill attention reaches 0.52-0.68 of peak on all six GPUs with operator tables; other efficiencies vary
# by tens of per cent; host times by factors between CPUs.
PRIOR_LOG_SD: dict[str, float] = {
    "weight_bandwidth_fraction": 0.05,
    "kv_bandwidth_fraction": 0.3,
    "gemm_compute_fraction": 0.4,
    "attention_compute_fraction": 0.15,
    "roofline_exponent": 0.4,
    "kernel_start_s": 0.7,
    "eager_launch_s": 1.0,
    "step_host_s": 0.5,
    "sequence_host_s": 1.0,
    "sampler_start_s": 1.0,
    "sampler_passes": 1.0,
    "skinny_vector_fraction": 0.3,
}
POWER_PRIOR_LOG_SD = {"busy_w": 0.7, "byte_j": 0.5, "flop_j": 0.5}
POWER_UNIT = {"busy_w": 1.0, "byte_j": 1e-10, "flop_j": 1e-12}  # steps of the size of the parameters
# Rows of one data set share what their rig does differently (clocks, versions, temperature): rows scatter by ROW_SD,
# and each set is off by SET_SD as a whole, so a set of 122 rows must not outvote one of 27.
ROW_SD, SET_SD = 0.03, 0.01
# A parameter whose posterior spread exceeds this share of its prior spread was not identified by the data.
IDENTIFIED_BELOW = 0.8
TIME_METRICS = ("ttft_s_mean", "ttft_s_median", "tpot_s_mean", "itl_s_median", "e2e_s_mean")
# Sources repeat one latency under several names (e2e = ttft for one-token outputs): the first of each counts.
_SAME = {"e2e_s_mean": ("ttft_s_mean", "tpot_s_mean", "itl_s_median"), "itl_s_median": ("tpot_s_mean",)}


@dataclass(frozen=True)
class Point:
    """One fitted number: a metric of a run, its weight group and its standard deviation in log units."""

    setup: Setup
    metric: str
    measured: float
    group: tuple[str, ...]
    sd: float


@dataclass(frozen=True)
class FitResult:
    """A fitted profile with what the fit says about itself."""

    profile: Calibration
    points: int
    evaluations: int
    not_identified: tuple[str, ...]
    left_out_log_sd: dict[str, float]
    converged: bool


def usable(records: Sequence[RunRecord], gpu: str | None) -> list[Setup]:
    """Rows that a fit may use: of one GPU, supported, without a `suspect:` flag."""
    out = []
    for record in records:
        if not record.flagged("suspect:"):
            try:
                setup = resolve(record)
                plan_memory(setup.model, setup.device, setup.precision, setup.settings)
            except (Unsupported, UserError):
                continue
            if gpu is None or setup.device.id == gpu:  # records may name a GPU by an alias
                out.append(setup)
    return out


def _group(record: RunRecord, metric: str) -> tuple[str, ...]:
    """Rows that share a systematic error: one model, metric, load and campaign of one source."""
    return (record.source, record.model, metric, record.load, record.campaign)


def time_points(setups: Sequence[Setup]) -> list[Point]:
    """The latencies to fit, with weights that respect shared errors."""
    found = []
    for setup in setups:
        measured = setup.record.measured()
        for metric in TIME_METRICS:
            one_token = setup.output_tok < 2 and metric.startswith(("tpot", "itl"))  # has no time per further token
            if metric in measured and not one_token and not any(other in measured for other in _SAME.get(metric, ())):
                found.append((setup, metric, measured[metric], _group(setup.record, metric)))
    sizes = Counter(group for *_, group in found)
    return [
        Point(
            setup,
            metric,
            value,
            group,
            math.sqrt(max(ROW_SD, setup.record.rel_noise or 0.0) ** 2 + sizes[group] * SET_SD**2),
        )
        for setup, metric, value, group in found
    ]


def with_parameters(profile: Calibration, values: dict[str, float]) -> Calibration:
    """The profile with other values for the parameters named."""
    parameters = msgspec.structs.asdict(profile.parameters) | values
    return msgspec.structs.replace(profile, parameters=Parameters(**parameters))


class Replayer:
    """Replays runs under one profile, each once; the profile is brought to the power mode of each run."""

    def __init__(self, profile: Calibration) -> None:
        self.profile = profile
        self._models = StepModels()
        self._runs: dict[int, dict[str, float]] = {}

    def __call__(self, setup: Setup) -> dict[str, float]:
        """Predicted metrics of a run."""
        if id(setup) not in self._runs:
            physics = self._models.get(setup, lambda: at_device(self.profile, setup.device))
            self._runs[id(setup)] = replay(setup, physics)
        return self._runs[id(setup)]


def predict_points(points: Sequence[Point], profile: Calibration) -> np.ndarray:
    """log(predicted / measured) of every point."""
    replayed = Replayer(profile)
    return np.array([math.log(replayed(point.setup)[point.metric] / point.measured) for point in points])


def robust(residuals: np.ndarray) -> np.ndarray:
    """Residuals whose squares are the soft-L1 loss 2 (sqrt(1 + r^2) - 1), so that outliers pull linearly."""
    return np.sign(residuals) * np.sqrt(2.0 * (np.sqrt(1.0 + residuals**2) - 1.0))


@dataclass(frozen=True)
class TimeFit:
    """Fitted time parameters, their posterior log spread and correlation, and how the search went."""

    values: dict[str, float]
    spread: dict[str, float]
    correlation: np.ndarray
    evaluations: int
    converged: bool


def fit_times(
    points: Sequence[Point], prior: Calibration, progress: Callable[[int, None], None] | None = None
) -> TimeFit:
    """Maximum a posteriori of the time parameters under robust errors."""
    from scipy.optimize import least_squares

    names = list(PRIOR_LOG_SD)
    start = np.log([max(getattr(prior.parameters, name), 1e-12) for name in names])
    spread = np.array([PRIOR_LOG_SD[name] for name in names])
    lower = np.log([max(PARAMETERS[name].lower, 1e-12) for name in names])
    upper = np.log([PARAMETERS[name].upper for name in names])
    sd = np.array([point.sd for point in points])
    calls = 0

    def residuals(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if progress:
            progress(calls, None)
        found = predict_points(points, with_parameters(prior, dict(zip(names, np.exp(x)))))
        return np.concatenate((robust(found / sd), (x - start) / spread))

    solution = least_squares(
        residuals, np.clip(start, lower + 1e-9, upper - 1e-9), bounds=(lower, upper), x_scale=spread,
        xtol=1e-6, ftol=1e-6, diff_step=1e-4, max_nfev=40,
    )  # fmt: skip
    covariance = np.linalg.inv(solution.jac.T @ solution.jac)
    posterior = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(posterior, posterior)
    return TimeFit(
        values=dict(zip(names, np.exp(solution.x).tolist())),
        spread=dict(zip(names, posterior.tolist())),
        correlation=correlation,
        evaluations=calls,
        converged=solution.status > 0,
    )


class PowerFit:
    """busy_w, byte_j and flop_j from steady-power rows of one scope, times being fitted already.

    Power = idle + busy + byte_j x byte/s + flop_j x FLOP/s is affine in the three: replays at zero and at one unit
    of each give the whole surface. Rows whose power covers more than the steady run are left out (they measure the
    sampling, not the device), as are rows at the power limit, where it is not affine.
    """

    def __init__(self, setups: Sequence[Setup], profile: Calibration, scope: str | None) -> None:
        self.names = list(POWER_PRIOR_LOG_SD)
        self.start = np.log([getattr(profile.parameters, name) for name in self.names])
        self.spread = np.array(list(POWER_PRIOR_LOG_SD.values()))
        now = Replayer(profile)
        steady = [s for s in setups if _steady_power(s, scope)]
        self.rows = [s for s in steady if now(s)["power_w"] < 0.99 * s.device.power.limit_w]
        self.measured = np.array([s.record.power_w for s in self.rows])
        zero = dict.fromkeys(self.names, 0.0)
        self.zero = self._power(profile, zero)
        self.slopes = np.stack(
            [
                (self._power(profile, {**zero, name: POWER_UNIT[name]}) - self.zero) / POWER_UNIT[name]
                for name in self.names
            ]
        )
        sizes = Counter(s.record.model for s in self.rows)
        self.sd = np.array([math.sqrt(ROW_SD**2 + sizes[s.record.model] * SET_SD**2) for s in self.rows])

    def _power(self, profile: Calibration, values: dict[str, float]) -> np.ndarray:
        replayed = Replayer(with_parameters(profile, values))
        return np.array([replayed(setup)["power_w"] for setup in self.rows])

    def errors(self, x: np.ndarray) -> np.ndarray:
        """log(predicted / measured) at log parameters x, shape (rows,)."""
        return np.log((self.zero + np.exp(x) @ self.slopes) / self.measured)

    def solve(self, kept: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(log parameters, posterior log spread), fitted on the rows where `kept` is true (default: all)."""
        from scipy.optimize import least_squares

        kept = np.ones(len(self.rows), dtype=bool) if kept is None else kept

        def residuals(x: np.ndarray) -> np.ndarray:
            return np.concatenate((robust(self.errors(x)[kept] / self.sd[kept]), (x - self.start) / self.spread))

        solution = least_squares(residuals, self.start)
        return solution.x, np.sqrt(np.diag(np.linalg.inv(solution.jac.T @ solution.jac)))

    def left_out(self) -> list[np.ndarray]:
        """Errors of each model's rows when they are left out of the fit; empty for fewer than two models."""
        models = np.array([s.record.model for s in self.rows])
        if len(set(models)) < 2:
            return []
        return [self.errors(self.solve(models != model)[0])[models == model] for model in sorted(set(models))]


def _steady_power(setup: Setup, scope: str | None) -> bool:
    record = setup.record
    return bool(record.power_w) and record.power_scope == scope and not record.flagged("whole_run_power")


def left_out_errors(points: Sequence[Point], prior: Calibration, progress=None) -> list[tuple[Point, float]]:
    """(point, log(predicted / measured)) when each model in turn is left out of the fit. Empty for one model."""
    models = sorted({point.setup.record.model for point in points})
    if len(models) < 2:
        return []
    out: list[tuple[Point, float]] = []
    for model in models:
        kept = [point for point in points if point.setup.record.model != model]
        held = [point for point in points if point.setup.record.model == model]
        fitted = fit_times(kept, prior, progress)
        out += zip(held, predict_points(held, with_parameters(prior, fitted.values)).tolist())
    return out


def check_rows(setups: Sequence[Setup], gpu: str) -> None:
    """UserError when there is nothing to fit."""
    if not setups:
        raise UserError(f"no usable rows of GPU '{gpu}': expected single-device static_batch or parallel_sampling runs")
