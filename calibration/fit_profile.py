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
    PowerFit,
    check_rows,
    fit_times,
    left_out_errors,
    predict_points,
    time_points,
    usable,
    with_parameters,
)
from calibration.records import RunRecord, records_hash, row_hash
from calibration.replay import Setup, is_gpu, operation, step_model
from simulator.batch import Batch, PrefillChunk
from simulator.device import load_device
from simulator.profile import Calibration, FittedOn
from simulator.profile_choice import at_device

# No interval claims less than this: sensors, clocks and versions move results by a few per cent between boards.
FLOOR_LOG_SD = 0.03
SENSOR_GAIN_SD = 0.05


def fit_profile(
    records: Sequence[RunRecord],
    gpu: str,
    prior: Calibration,
    files: tuple[str, ...],
    engine: str = "vllm",
    progress: Callable[[int, None], None] | None = None,
) -> FitResult:
    """Fit every parameter that the rows of `gpu` can say something about; UserError when there are none.

    `prior`: a family's defaults or another profile; it is brought to `gpu` in its default power mode first.
    """
    setups = [s for s in usable(records, gpu) if s.record.engine in (None, engine)]
    check_rows(setups, gpu)
    points = time_points(setups)
    here = at_device(prior, load_device(gpu))
    base = msgspec.structs.replace(
        here, gpu=gpu, reference_gpu=None, idle_w=_idle_power(records, gpu, prior), engine=engine
    )
    times = fit_times(points, base, progress)
    profile = with_parameters(base, times.values)
    scope = next((s.record.power_scope for s in setups if s.record.power_w and s.record.power_scope), None)
    power = PowerFit(setups, profile, scope)
    x, power_sd = power.solve()
    profile = with_parameters(profile, dict(zip(power.names, np.exp(x).tolist())))
    held = left_out_errors(points, base, progress)
    spread = times.spread | dict(zip(power.names, power_sd.tolist()))
    missing = tuple(n for n, sd in (PRIOR_LOG_SD | POWER_PRIOR_LOG_SD).items() if spread[n] > IDENTIFIED_BELOW * sd)
    inside = list(zip(points, predict_points(points, profile).tolist()))
    log_sd, said = _spreads(inside, held, power, x, prior)
    log_sd["energy_prefill"] = _prefill_energy_sd(setups, profile, log_sd, spread["flop_j"])
    versions = sorted({s.record.engine_version or "?" for s in setups})
    profile = msgspec.structs.replace(
        profile,
        id=f"{gpu}.{engine}",
        title=f"{setups[0].device.name} with {engine} {', '.join(versions)}",
        source=f"fitted on {len(setups)} runs of {', '.join(sorted({s.record.source for s in setups}))}",
        log_sd={kind: round(sd, 4) for kind, sd in log_sd.items()},
        power_scope=scope or prior.power_scope,
        fitted=tuple(PRIOR_LOG_SD),
        parameter_log_sd={name: round(sd, 4) for name, sd in spread.items()},
        correlation=tuple(tuple(row) for row in times.correlation.tolist()),
        fitted_on=_range(setups, files),
        notes=(*_notes(missing, prior, times.converged), *said),
    )
    by_kind = {kind: _rms_of_groups(held, kind) for kind in KINDS if _of_kind(held, kind)}
    return FitResult(profile, len(points), times.evaluations, missing, by_kind, times.converged)


def _idle_power(records: Sequence[RunRecord], gpu: str, prior: Calibration) -> float | None:
    """Lowest power that the source reports, where it is plainly an idle sample; else what the prior says.

    Prefills shorter than the sampling period show the idle rail: those rows are flagged as sampling artefacts, are not
    fitted, and say this one thing.
    """
    idle = [r for r in records if r.power_w and r.flagged("suspect:sampling_artefact") and is_gpu(r, gpu)]
    return float(min(r.power_w for r in idle)) if idle else prior.idle_w


KINDS = ("ttft", "tpot")
Errors = Sequence[tuple[Point, float]]


def _of_kind(errors: Errors, kind: str) -> list[tuple[Point, float]]:
    """Errors of one kind of metric: everything that is not a TTFT is dominated by decoding."""
    return [(point, error) for point, error in errors if point.metric.startswith("ttft") == (kind == "ttft")]


def _rms_of_groups(errors: Errors, kind: str) -> float:
    """Root mean square in which every campaign counts once, because a user's board is one more campaign."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for point, error in _of_kind(errors, kind):
        groups.setdefault(point.group, []).append(error**2)
    return math.sqrt(float(np.mean([np.mean(group) for group in groups.values()])))


def _spreads(
    inside: Errors, held: Errors, power: PowerFit, x: np.ndarray, prior: Calibration
) -> tuple[dict[str, float], list[str]]:
    """Log spread by kind, and sentences on what it is made of.

    The larger of in-sample and left-one-model-out. Where nothing was left out, the prior's spread is added in
    quadrature; where a kind was never measured, the prior's spread stands.
    """
    out, said = {}, []
    for kind in KINDS:
        if not _of_kind(inside, kind):
            out[kind] = prior.spread(kind)
            said.append(f"no {kind.upper()} was measured: its interval is the prior's")
        elif not _of_kind(held, kind):
            out[kind] = math.hypot(_rms_of_groups(inside, kind), prior.spread(kind))
            said.append(f"one model only, nothing was left out: the interval of {kind.upper()} holds the prior's too")
        else:
            left = _rms_of_groups(held, kind)
            out[kind] = max(FLOOR_LOG_SD, _rms_of_groups(inside, kind), left)
            said.append(f"left-one-model-out root mean square error of {kind.upper()}: {100 * left:.0f} %")
    out["time"] = out["tpot"]
    out["power"] = prior.spread("power")
    if power.rows:
        left = [math.sqrt(float(np.mean(e**2))) for e in power.left_out()]
        inside_w = math.sqrt(float(np.mean(power.errors(x) ** 2)))
        # Power was measured on one board; another board's sensor gain alone is +-5 %.
        out["power"] = math.hypot(max(inside_w, *left), SENSOR_GAIN_SD) if left else math.hypot(inside_w, out["power"])
    out["energy"] = math.hypot(out["time"], out["power"])
    return out, said


def _prefill_energy_sd(
    setups: Sequence[Setup], profile: Calibration, log_sd: dict[str, float], flop_sd: float
) -> float:
    """Spread of the energy of prefill: its time, the sensor, and the energy per FLOP by its share of the total."""
    share = []
    for setup in {s.model: s for s in setups}.values():
        batch = Batch((PrefillChunk(2048),))
        with_flops = step_model(setup, profile).step(batch).joules
        without = step_model(setup, with_parameters(profile, {"flop_j": 0.0})).step(batch).joules
        share.append(1.0 - without / with_flops)
    return math.sqrt(log_sd["ttft"] ** 2 + log_sd["power"] ** 2 + (max(share) * flop_sd) ** 2)


def _range(setups: Sequence[Setup], files: tuple[str, ...]) -> FittedOn:
    runs = [operation(s) for s in setups]
    sizes = [run.parameters for run in runs]

    def seen(name: str) -> tuple:
        return tuple(sorted({getattr(run, name) for run in runs}))

    return FittedOn(
        files=files,
        sha256=records_hash([s.record for s in setups]),
        rows=len(setups),
        models=tuple(sorted({s.record.model for s in setups})),
        weights=seen("weights"),
        kv_caches=seen("kv_cache"),
        features=tuple(sorted({feature for run in runs for feature in run.features})),
        cuda_graphs=seen("cuda_graphs"),
        max_batch=max(s.batch for s in setups),
        max_context_tok=max(s.input_tok + s.output_tok for s in setups),
        max_prompt_tok=max(s.input_tok for s in setups),
        min_parameters=float(min(sizes)),
        max_parameters=float(max(sizes)),
        power_modes=tuple(sorted({s.device.power_mode for s in setups if s.device.power_mode})),
        row_hashes=tuple(row_hash(s.record) for s in setups),
    )


def _notes(missing: tuple[str, ...], prior: Calibration, converged: bool) -> tuple[str, ...]:
    notes = [f"starts from '{prior.id}'; {note}" for note in prior.notes if note.startswith("skinny_rows")]
    if missing:
        notes.append(
            "not identified by these data (posterior spread above 80 % of the prior's), so the value is the prior's "
            f"within its spread: {', '.join(missing)}"
        )
    if not converged:
        notes.append("the search stopped at its limit of evaluations: the values are not a minimum")
    return tuple(notes)
