"""From run records to a finished profile: fit, leave models out, state spreads, range and what was not identified."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from calibration.fit import (
    IDENTIFIED_BELOW,
    POWER_PRIOR_LOG_SD,
    PRIOR_LOG_SD,
    FitResult,
    Point,
    check_rows,
    fit_power,
    fit_times,
    left_out_errors,
    predict_points,
    time_points,
    usable,
    with_parameters,
)
from calibration.records import RunRecord, records_hash
from calibration.replay import Setup
from simulator.profile import Calibration, FittedOn

# No interval claims less than this: sensors, clocks and versions move results by a few per cent between boards.
FLOOR_LOG_SD = 0.03


def fit_profile(
    records: Sequence[RunRecord],
    gpu: str,
    prior: Calibration,
    files: tuple[str, ...],
    engine: str = "vllm",
    progress: Callable[[int, None], None] | None = None,
) -> FitResult:
    """Fit every parameter that the rows of `gpu` can say something about; UserError when there are none."""
    setups = [s for s in usable(records, gpu) if s.record.engine in (None, engine)]
    check_rows(setups, gpu)
    points = time_points(setups)
    idle_w = _idle_power(records, gpu, prior)
    prior = msgspec.structs.replace(prior, idle_w=idle_w)
    values, spread, correlation, calls = fit_times(points, prior, progress)
    profile = with_parameters(prior, values)
    power, power_spread, power_residuals = fit_power(setups, profile)
    profile = with_parameters(profile, power)
    left_out = left_out_errors(points, prior, progress)
    priors = PRIOR_LOG_SD | POWER_PRIOR_LOG_SD
    spread |= power_spread
    missing = tuple(name for name, sd in priors.items() if spread[name] > IDENTIFIED_BELOW * sd)
    log_sd = _spreads(points, predict_points(points, profile), left_out, power_residuals)
    versions = sorted({s.record.engine_version or "?" for s in setups})
    profile = msgspec.structs.replace(
        profile,
        id=f"{gpu}.{engine}",
        title=f"{setups[0].device.name} with {engine} {', '.join(versions)}",
        engine=engine,
        gpu=gpu,
        source=f"fitted on {len(setups)} runs of {', '.join(sorted({s.record.source for s in setups}))}",
        log_sd=log_sd,
        power_scope=next((s.record.power_scope for s in setups if s.record.power_scope), prior.power_scope),
        fitted=tuple(PRIOR_LOG_SD),
        parameter_log_sd={name: round(sd, 4) for name, sd in spread.items()},
        correlation=tuple(tuple(row) for row in correlation.tolist()),
        fitted_on=_range(setups, files),
        notes=_notes(missing, prior, left_out),
    )
    return FitResult(profile, len(points), calls, missing, {name: _rms(e) for name, e in left_out.items()})


def _idle_power(records: Sequence[RunRecord], gpu: str, prior: Calibration) -> float | None:
    """Lowest power that the source reports, where it is plainly an idle sample; else what the prior says.

    Prefills shorter than the sampling period show the idle rail: those rows are flagged, and useful for this alone.
    """
    flagged = [r.power_w for r in records if r.gpu == gpu and r.power_w and r.flagged("suspect:sampling_artefact")]
    return float(min(flagged)) if flagged else prior.idle_w


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def _spreads(
    points: Sequence[Point], residuals: np.ndarray, left_out: dict[str, np.ndarray], power: list[float]
) -> dict[str, float]:
    """Log spread by kind of metric: the larger of in-sample and left-one-model-out, over groups of equal weight.

    Groups (campaigns) count equally, because a user's board is one more campaign, not one more row.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for point, residual in zip(points, residuals):
        kind = "ttft" if point.metric.startswith("ttft") else "tpot"
        groups.setdefault((kind, point.group), []).append(float(residual))
    out = {}
    for kind in ("ttft", "tpot"):
        means = [np.mean(np.square(g)) for (k, _), g in groups.items() if k == kind]
        held = [_rms(errors) for metric, errors in left_out.items() if metric.startswith(kind)]
        inside = math.sqrt(float(np.mean(means))) if means else 0.0
        out[kind] = round(max([FLOOR_LOG_SD, inside, *held]), 4)
    out["time"] = out["tpot"]
    spread_w = _rms(np.array(power)) if power else 0.3
    # Power was measured on one rail of one board; another board's sensor gain alone is +-5 %.
    out["power"] = round(math.hypot(spread_w, 0.05), 4)
    out["energy"] = round(math.hypot(out["time"], out["power"]), 4)
    return out


def _range(setups: Sequence[Setup], files: tuple[str, ...]) -> FittedOn:
    sizes = [s.model.parameters() for s in setups]
    return FittedOn(
        files=files,
        sha256=records_hash([s.record for s in setups]),
        rows=len(setups),
        models=tuple(sorted({s.record.model for s in setups})),
        weights=tuple(sorted({s.precision.weights for s in setups})),
        max_batch=max(s.batch for s in setups),
        max_context_tok=max(s.input_tok + s.output_tok for s in setups),
        max_prompt_tok=max(s.input_tok for s in setups),
        min_parameters=float(min(sizes)),
        max_parameters=float(max(sizes)),
        power_modes=tuple(sorted({s.record.power_mode for s in setups if s.record.power_mode})),
    )


def _notes(missing: tuple[str, ...], prior: Calibration, left_out: dict[str, np.ndarray]) -> tuple[str, ...]:
    notes = [f"starts from '{prior.id}'; {note}" for note in prior.notes if note.startswith("skinny_rows")]
    if missing:
        notes.append(
            "not identified by these data (posterior spread above 80 % of the prior's), so the value is the prior's "
            f"within its spread: {', '.join(missing)}"
        )
    if left_out:
        figures = ", ".join(f"{name} {100 * _rms(errors):.0f} %" for name, errors in left_out.items())
        notes.append(f"left-one-model-out root mean square error: {figures}")
    return tuple(notes)
