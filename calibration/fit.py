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
from calibration.replay import Setup, Unsupported, replay, resolve, step_model
from simulator.errors import UserError
from simulator.profile import PARAMETERS, Calibration, Parameters

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


def usable(records: Sequence[RunRecord], gpu: str | None) -> list[Setup]:
    """Rows that a fit may use: of one GPU, supported, without a `suspect:` flag."""
    out = []
    for record in records:
        if (gpu is None or record.gpu == gpu) and not record.flagged("suspect:"):
            try:
                out.append(resolve(record))
            except Unsupported:
                continue
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
            if metric in measured and not any(other in measured for other in _SAME.get(metric, ())):
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
    parameters = msgspec.structs.asdict(profile.parameters) | values
    return msgspec.structs.replace(profile, parameters=Parameters(**parameters))


def predict_points(points: Sequence[Point], profile: Calibration) -> np.ndarray:
    """log(predicted / measured) of every point; one replay per run, one physics per configuration."""
    physics: dict[tuple, object] = {}
    runs: dict[str, dict[str, float]] = {}
    out = np.empty(len(points))
    for index, point in enumerate(points):
        setup = point.setup
        key = (
            setup.device.id,
            setup.device.power_mode,
            setup.model.name,
            setup.precision,
            setup.sampler,
            setup.cuda_graphs,
        )
        if key not in physics:
            physics[key] = step_model(setup, profile)
        run_id = setup.record.run_id
        if run_id not in runs:
            runs[run_id] = replay(setup, physics[key])
        out[index] = math.log(runs[run_id][point.metric] / point.measured)
    return out


def robust(residuals: np.ndarray) -> np.ndarray:
    """Residuals whose squares are the soft-L1 loss 2 (sqrt(1 + r^2) - 1), so that outliers pull linearly."""
    return np.sign(residuals) * np.sqrt(2.0 * (np.sqrt(1.0 + residuals**2) - 1.0))


def fit_times(
    points: Sequence[Point], prior: Calibration, progress: Callable[[int, None], None] | None = None
) -> tuple[dict[str, float], dict[str, float], np.ndarray, int]:
    """Fitted time parameters, their posterior log spread, correlation matrix, and evaluations used."""
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
    return dict(zip(names, np.exp(solution.x).tolist())), dict(zip(names, posterior.tolist())), correlation, calls


def fit_power(setups: Sequence[Setup], profile: Calibration) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """busy_w, byte_j and flop_j from steady-power rows; also their posterior log spread and the log residuals.

    Power = idle + busy + byte_j x byte/s + flop_j x FLOP/s. Rows whose power covers more than the steady run are
    left out: they measure the sampling, not the device.
    """
    from scipy.optimize import least_squares

    rows = [s for s in setups if s.record.power_w and not s.record.flagged("whole_run_power")]
    names = list(POWER_PRIOR_LOG_SD)
    if not rows:
        return {name: getattr(profile.parameters, name) for name in names}, dict(POWER_PRIOR_LOG_SD), []
    start = np.log([getattr(profile.parameters, name) for name in names])
    spread = np.array(list(POWER_PRIOR_LOG_SD.values()))
    sizes = Counter(s.record.model for s in rows)
    sd = np.array([math.sqrt(ROW_SD**2 + sizes[s.record.model] * SET_SD**2) for s in rows])
    # Power is affine in the three parameters: three unit replays and one at zero give the whole surface.
    zero = _power_of(rows, with_parameters(profile, dict.fromkeys(names, 0.0)))
    units = {"busy_w": 1.0, "byte_j": 1e-10, "flop_j": 1e-12}
    slopes = np.stack(
        [
            (_power_of(rows, with_parameters(profile, {**dict.fromkeys(names, 0.0), name: units[name]})) - zero)
            / units[name]
            for name in names
        ]
    )
    measured = np.array([s.record.power_w for s in rows])

    def residuals(x: np.ndarray) -> np.ndarray:
        error = np.log((zero + np.exp(x) @ slopes) / measured)
        return np.concatenate((robust(error / sd), (x - start) / spread))

    solution = least_squares(residuals, start)
    covariance = np.linalg.inv(solution.jac.T @ solution.jac)
    left = np.log((zero + np.exp(solution.x) @ slopes) / measured)
    return (
        dict(zip(names, np.exp(solution.x).tolist())),
        dict(zip(names, np.sqrt(np.diag(covariance)).tolist())),
        left.tolist(),
    )


def _power_of(rows: Sequence[Setup], profile: Calibration) -> np.ndarray:
    physics: dict[tuple, object] = {}
    out = []
    for setup in rows:
        key = (setup.model.name, setup.precision, setup.device.power_mode, setup.sampler, setup.cuda_graphs)
        if key not in physics:
            physics[key] = step_model(setup, profile)
        out.append(replay(setup, physics[key])["power_w"])
    return np.array(out)


def left_out_errors(points: Sequence[Point], prior: Calibration, progress=None) -> dict[str, np.ndarray]:
    """log(predicted / measured) by metric when each model in turn is left out of the fit. Empty for one model."""
    models = sorted({point.setup.record.model for point in points})
    out: dict[str, list[float]] = {}
    if len(models) < 2:
        return {}
    for model in models:
        kept = [point for point in points if point.setup.record.model != model]
        held = [point for point in points if point.setup.record.model == model]
        values, *_ = fit_times(kept, prior, progress)
        for point, error in zip(held, predict_points(held, with_parameters(prior, values))):
            out.setdefault(point.metric, []).append(float(error))
    return {metric: np.array(errors) for metric, errors in out.items()}


def check_rows(setups: Sequence[Setup], gpu: str) -> None:
    """UserError when there is nothing to fit."""
    if not setups:
        raise UserError(f"no usable rows of GPU '{gpu}': expected single-device static_batch or parallel_sampling runs")
