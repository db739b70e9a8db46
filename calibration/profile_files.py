"""From a family's fit to the files that ship: a profile per GPU, and the engine's overheads for GPUs without runs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from calibration.family_fit import FamilyFit, spreads
from calibration.fleet import groups_used
from calibration.points import architecture_key
from calibration.records import RunRecord, records_hash, row_hash
from calibration.setup import Setup, graph_rule_of, is_gpu, operation
from calibration.write import parameter_lines, toml_key, toml_value
from simulator.parameters import with_values
from simulator.profile import Calibration, FittedOn
from simulator.profile_parts import EngineFamily, kernels_for

SENSOR_GAIN_SD = 0.05  # power was measured on one board; another board's sensor gain alone is +-5 %


def gpu_profile(fit: FamilyFit, gpu: str, records: Sequence[RunRecord], files: tuple[str, ...]) -> Calibration:
    """The profile of one GPU under the family's engine. `records`: all rows read, for what suspect ones say of idle."""
    setups = [setup for setup in fit.fleet.setups if setup.device.id == gpu]
    prior = fit.times.priors_[gpu]
    profile = (fit.power or fit.times).fit_.of_gpu(gpu)
    scope = next((s.record.power_scope for s in setups if s.record.power_w and s.record.power_scope), None)
    names, correlation = _own(fit, gpu)
    log_sd, said = _profile_spreads(fit, gpu, prior)
    versions = sorted({setup.version or "?" for setup in setups})
    engine = setups[0].family.engine
    return msgspec.structs.replace(
        profile,
        id=f"{gpu}.{fit.family}",
        title=f"{setups[0].device.name} with {engine} {', '.join(versions)}",
        engine=fit.family,
        source=f"fitted on {len(setups)} runs of {', '.join(sorted({s.record.source for s in setups}))}",
        gpu=gpu,
        reference_gpu=None,
        idle_w=_idle_power(records, gpu, prior),
        power_scope=scope or prior.power_scope,
        graph_rule=_graph_rule(setups),
        log_sd=log_sd,
        fitted=names,
        parameter_log_sd=_log_sd(fit, gpu),
        correlation=correlation,
        fitted_on=fitted_range(setups, files),
        notes=(*_notes(fit, gpu), *said),
    )


def _graph_rule(setups: Sequence[Setup]) -> str:
    """The rule by which most of these runs recorded CUDA graphs."""
    names = [graph_rule_of(setup.record, setup.family, setup.version) for setup in setups]
    return max(sorted(set(names)), key=names.count)


def _own(fit: FamilyFit, gpu: str) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Time parameters of the GPU by their bare names, and their correlations."""
    solution, names = fit.times.fit_.solution, fit.times.names_
    places = [i for i, name in enumerate(names) if name.rpartition("/")[0] in ("", gpu)]
    matrix = solution.correlation[np.ix_(places, places)]
    return tuple(names[i].rpartition("/")[2] for i in places), tuple(tuple(row) for row in matrix.tolist())


def _log_sd(fit: FamilyFit, gpu: str) -> dict[str, float]:
    """Posterior spread of every fitted parameter of the GPU, times and power."""
    out: dict[str, float] = {}
    for model in (fit.times, fit.power):
        if model is not None:
            found = model.fit_.solution.log_sd
            out |= {n.rpartition("/")[2]: round(sd, 4) for n, sd in found.items() if n.rpartition("/")[0] in ("", gpu)}
    return out


def _profile_spreads(fit: FamilyFit, gpu: str, prior: Calibration) -> tuple[dict[str, float], list[str]]:
    """Spread by kind: of the GPU's own left-out errors; with one architecture the family's, if that is wider."""
    own = [p for p in fit.predictions if p.setup.device.id == gpu]
    architectures = {architecture_key(p.setup) for p in own}
    said, out = [], spreads(own)
    if len(architectures) < 2 or all(p.left_out is None for p in own):
        said.append("one architecture only: the spread is at least that of the engine's other GPUs, or the prior's")
        out = {kind: max(sd, fit.log_sd.get(kind, 0.0), _fallback(fit, prior, kind)) for kind, sd in out.items()}
    for kind in ("ttft", "tpot", "time", "power"):
        if kind not in out:
            out[kind] = max(fit.log_sd.get(kind, 0.0), prior.spread(kind)) if kind != "time" else out["tpot"]
            said.append(f"no {kind.upper()} was measured: its spread is the prior's")
    out["power"] = float(np.hypot(out["power"], SENSOR_GAIN_SD))
    out["energy"] = max(out.get("energy", 0.0), float(np.hypot(out["time"], out["power"])))
    out["energy_prefill"] = float(np.hypot(out["energy"], prior.spread("energy")))
    return {kind: round(sd, 4) for kind, sd in out.items()}, said


def _fallback(fit: FamilyFit, prior: Calibration, kind: str) -> float:
    """What a kind's spread is at least when the GPU's own rows cannot tell: nothing more if the family can."""
    return 0.0 if len(fit.gpus) > 1 else prior.spread(kind)


def _idle_power(records: Sequence[RunRecord], gpu: str, prior: Calibration) -> float | None:
    """Lowest power that the source reports, where it is plainly an idle sample; else what the prior says.

    Prefills shorter than the sampling period show the idle rail: those rows are flagged as sampling artefacts, are not
    fitted, and say this one thing.
    """
    idle = [r for r in records if r.power_w and r.flagged("suspect:sampling_artefact") and is_gpu(r, gpu)]
    return float(min(r.power_w for r in idle)) if idle else prior.idle_w


def fitted_range(setups: Sequence[Setup], files: tuple[str, ...]) -> FittedOn:
    """What the runs of a fit cover, and their hashes."""
    runs = [operation(setup) for setup in setups]
    sizes = [run.parameters for run in runs]

    def seen(name: str) -> tuple:
        return tuple(sorted({getattr(run, name) for run in runs}))

    return FittedOn(
        files=files,
        sha256=records_hash([setup.record for setup in setups]),
        rows=len(setups),
        models=tuple(sorted({setup.record.model for setup in setups})),
        weights=seen("weights"),
        kv_caches=seen("kv_cache"),
        features=tuple(sorted({feature for run in runs for feature in run.features})),
        cuda_graphs=seen("cuda_graphs"),
        max_batch=max(run.batch for run in runs),
        max_context_tok=max(run.context_tok for run in runs),
        max_prompt_tok=max(run.prompt_tok for run in runs),
        min_parameters=float(min(sizes)),
        max_parameters=float(max(sizes)),
        max_tp=max(run.tp for run in runs),
        power_modes=tuple(sorted({s.device.power_mode for s in setups if s.device.power_mode})),
        row_hashes=tuple(row_hash(setup.record) for setup in setups),
    )


def _notes(fit: FamilyFit, gpu: str) -> list[str]:
    missing = [
        name.rpartition("/")[2]
        for model in (fit.times, fit.power)
        if model is not None
        for name in model.fit_.solution.not_identified
        if name.rpartition("/")[0] in ("", gpu)
    ]
    notes = [f"starts from '{fit.times.priors_[gpu].id}'"]
    if missing:
        notes.append(
            "not identified by these data (posterior spread above 80 % of the prior's), so the value is the prior's "
            f"within its spread: {', '.join(missing)}"
        )
    if not fit.times.fit_.solution.converged:
        notes.append("the search stopped at its limit of evaluations: the values are not a minimum")
    return notes


def weight_only_values(fits: Sequence[FamilyFit]) -> dict[str, dict[str, float]]:
    """Fitted parameters of weight-only products by GPU id, where server runs with such weights were fitted.

    Of two engine families with such runs on one GPU that with more of them speaks.
    """
    out: dict[str, dict[str, float]] = {}
    counted: dict[str, int] = {}
    for fit in fits:
        for gpu in fit.gpus if kernels_for(fit.fleet.setups[0].device).host_factor == 1.0 else ():
            prefix = f"{gpu}/gemm_weight_only."
            values = {n.removeprefix(prefix): v for n, v in fit.values.items() if n.startswith(prefix)}
            runs = sum(s.device.id == gpu and "gemm_weight_only" in groups_used(s) for s in fit.fleet.setups)
            if values and runs > counted.get(gpu, 0):
                out[gpu], counted[gpu] = values, runs
    return out


def with_weight_only(profile: Calibration, values: dict[str, dict[str, float]]) -> Calibration:
    """The profile with weight-only products as other engines' runs of its GPU showed them, unless it has its own."""
    found = values.get(profile.gpu or "")
    if not found or any(name.startswith("gemm_weight_only.") for name in profile.fitted):
        return profile
    dotted = {f"gemm_weight_only.{name}": value for name, value in found.items()}
    return msgspec.structs.replace(profile, parameters=with_values(profile.parameters, dotted))


def weight_only_text(values: dict[str, dict[str, float]], command: str) -> str:
    """The TOML of `profiles/weight_only.toml`."""
    lines = [f"# Written by: {command}", "# Weight-only matrix products (int4) as serving runs showed them, by GPU."]
    for gpu, found in sorted(values.items()):
        lines += ["", f"[{toml_key(gpu)}]", *[f"{name} = {toml_value(value)}" for name, value in found.items()]]
    return "\n".join(lines) + "\n"


def fitted_engine(fit: FamilyFit) -> EngineFamily:
    """The family's overheads as fitted over its GPUs, with the spread of left-out errors."""
    family = fit.fleet.setups[0].family
    values = {n.removeprefix("engine."): v for n, v in fit.values.items() if n.startswith("engine.")}
    sources = ", ".join(sorted({setup.record.source for setup in fit.fleet.setups}))
    log_sd = dict(fit.log_sd)
    log_sd.setdefault("time", log_sd.get("tpot", family.prior_log_sd["time"]))
    log_sd.setdefault("ttft", max(log_sd["time"], family.prior_log_sd.get("ttft", 0.0)))
    log_sd.setdefault("energy", float(np.hypot(log_sd["time"], log_sd.get("power", family.prior_log_sd["energy"]))))
    return msgspec.structs.replace(
        family,
        source=f"overheads of {family.id} fitted on {len(fit.fleet.setups)} runs of {sources} on {', '.join(fit.gpus)}",
        log_sd={kind: round(sd, 4) for kind, sd in log_sd.items()},
        parameters=msgspec.structs.replace(family.prior, **values),
    )


def engine_text(family: EngineFamily, command: str) -> str:
    """The TOML of an engine family's file."""
    table = msgspec.to_builtins(family)
    prior, parameters, notes = (table.pop(name) for name in ("prior", "parameters", "notes"))
    spreads_by_title = {name: table.pop(name) for name in ("prior_log_sd", "log_sd")}
    lines = [f"# `prior` and `prior_log_sd` are set by hand; the rest is written by: {command}", ""]
    lines += [f"{name} = {toml_value(value)}" for name, value in table.items() if value is not None]
    lines += ["notes = [", *[f"    {toml_value(note)}," for note in notes], "]"]
    for title, log_sd in spreads_by_title.items():
        lines += ["", f"[{title}]", *[f"{toml_key(kind)} = {toml_value(sd)}" for kind, sd in log_sd.items()]]
    for title, values in (("prior", prior), ("parameters", parameters)):
        body = parameter_lines({"engine": values})
        lines += ["", f"[{title}]", *body[2:]]
    return "\n".join(lines) + "\n"
