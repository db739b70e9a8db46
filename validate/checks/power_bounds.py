"""F3, bounds of power and energy (B5): idle <= mean power <= enforced limit, and energy in between; on both sides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.finding import Finding
from validate.wording import counted

SENSOR_GAIN = 0.05  # relative gain error of board sensors, fixed per board (arXiv 2312.02741)
# Below idle: data sheets' idle figures are listings of single cards, which scatter by about a tenth.
IDLE_SCATTER = 0.10
# What a scope covers. A rail is a part of its board: it may draw less than the board idles, never more than its limit.
WHOLE = ("board", "module")  # both bounds
PART = ("gpu_soc_rail", "cpu_gpu_cv_rail")  # upper bound; lower one only against an idle figure of the same rail
AROUND = ("wall", "system", "node")  # more than the devices: lower bound
FORMULA = {
    "limit": "B5: mean power <= devices x enforced limit x 1.05",
    "idle": "B5: mean power >= devices x idle power",
    "energy_limit": "B5: energy per token <= devices x limit x 1.05 x seconds per token",
    "energy_idle": "B5: energy per token >= devices x idle power x seconds per token",
}


@dataclass(frozen=True)
class _Hit:
    """One figure beyond a bound; `excess` > 1 is how far, as a factor. Watts, or joules per token."""

    case: Case
    metric: str
    kind: str
    value: float
    bound: float
    devices: int

    @property
    def excess(self) -> float:
        if self.kind.endswith("limit"):
            return self.value / self.bound
        return self.bound / self.value if self.value > 0.0 else math.inf


def check(evidence: Evidence) -> Iterator[Finding]:
    """One finding per side and bound; a scope that is not stated is a note."""
    for side in ("measured", "simulated"):
        found: dict[str, list[_Hit]] = {}
        for case in evidence.cases:
            record = case.record if side == "measured" else case.simulated
            if case.setup is None or record is None:
                continue
            for hit in (*_power(case, record, evidence), *_energy(case, record, evidence)):
                found.setdefault(hit.kind, []).append(hit)
        for kind, hits in found.items():
            yield _finding(kind, hits, side, evidence.own)
    yield from _unstated(evidence)


def _limits(case: Case, record: RunRecord, evidence: Evidence) -> tuple[float | None, float | None]:
    """(idle, limit) of all devices in watts, as far as the scope of the figure allows to say; None where it does not.

    The limit is that of the power mode or cap in force. Without a scope: the limit of the board, which parts obey too.
    """
    scope = record.power_scope or case.record.power_scope
    limit_w = None if scope in AROUND else case.setup.device.power.limit_w * case.setup.parallel.world_size
    return (idle_w_of(case, record, evidence) if scope else None), limit_w


def idle_w_of(case: Case, record: RunRecord, evidence: Evidence) -> float | None:
    """Idle power of all devices over what a figure covers, in watts; of a board where that is not stated.

    None for a rail whose idle power was not measured, and for a scope that is not known.
    """
    scope = record.power_scope or case.record.power_scope
    profile = evidence.profiles.get(case.prediction.profile)
    idle_w = case.setup.device.power.idle_w if scope in (None, "", *WHOLE, *AROUND) else None
    if scope in PART and profile is not None and profile.power_scope == scope:
        idle_w = profile.idle_w
    return idle_w * case.setup.parallel.world_size if idle_w else None


def _power(case: Case, record: RunRecord, evidence: Evidence) -> Iterator[_Hit]:
    value = record.power_w
    if value is None or not math.isfinite(value):
        return
    idle_w, limit_w = _limits(case, record, evidence)
    devices = case.setup.parallel.world_size
    if limit_w and value > limit_w * (1.0 + SENSOR_GAIN):
        yield _Hit(case, "power_w", "limit", value, limit_w, devices)
    elif value <= 0.0 or (idle_w and value < idle_w * (1.0 - IDLE_SCATTER)):
        yield _Hit(case, "power_w", "idle", value, idle_w or case.setup.device.power.idle_w * devices, devices)


def _energy(case: Case, record: RunRecord, evidence: Evidence) -> Iterator[_Hit]:
    value, seconds = record.energy_j_per_output_tok, seconds_per_token(record)
    if value is None or not math.isfinite(value):
        return
    idle_w, limit_w = _limits(case, record, evidence)
    devices = case.setup.parallel.world_size
    if seconds and limit_w and value > limit_w * (1.0 + SENSOR_GAIN) * seconds:
        yield _Hit(case, "energy_j_per_output_tok", "energy_limit", value, limit_w * seconds, devices)
    elif value <= 0.0 or (seconds and idle_w and value < idle_w * (1.0 - IDLE_SCATTER) * seconds):
        bound = (idle_w or case.setup.device.power.idle_w * devices) * (seconds or 0.0)
        yield _Hit(case, "energy_j_per_output_tok", "energy_idle", value, bound, devices)


def seconds_per_token(record: RunRecord) -> float | None:
    """Wall time of the run over the tokens that it wrote, from what was measured; None where that does not say."""
    if record.output_tok_per_s and 0.0 < record.output_tok_per_s < math.inf:
        return 1.0 / record.output_tok_per_s
    together = record.load in ("static_batch", "parallel_sampling")
    requests = record.concurrency if together else record.num_requests
    lasted = record.duration_s or (record.e2e_s_mean if together else None)
    if requests and record.output_tok and lasted and 0.0 < lasted < math.inf:
        return lasted / (requests * record.output_tok)
    return None


def _finding(kind: str, hits: list[_Hit], side: str, own: bool) -> Finding:
    worst = max(hits, key=lambda hit: hit.excess)
    runs = tuple(dict.fromkeys(hit.case.id for hit in hits))
    mine = side == "simulated" and own
    low = kind.endswith("idle")
    return Finding(
        check=f"power_bounds.{kind}",
        layer="bounds",
        fault="F3",
        also=("F5", "F9") if low else ("F2", "F5"),
        severity="fail",
        confidence="certain" if worst.value <= 0.0 or worst.excess > 2.0 else "likely",
        runs=runs,
        metrics=(worst.metric,),
        says=_sentence(worst, "this simulator's own" if mine else side, len(runs)),
        evidence={
            "side": side, "worst_run": worst.case.id, "value": worst.value, "bound": worst.bound,
            "devices": float(worst.devices), "scope": worst.case.record.power_scope or "not stated",
            "formula": FORMULA[kind],
        },
        next=_advice(low, mine, worst),
    )  # fmt: skip


def _sentence(worst: _Hit, whose: str, runs: int) -> str:
    unit = "J/token" if worst.kind.startswith("energy") else "W"
    figure = f"{whose} {worst.metric} of {worst.case.id} is {worst.value:.4g} {unit}"
    of_runs = f"({counted(runs, 'run')})"
    if worst.value <= 0.0:
        return f"{figure}, which no running device draws {of_runs}"
    devices = counted(worst.devices, "device")
    if worst.kind.endswith("idle"):
        return f"{figure}, below {worst.bound:.4g} {unit}, the idle power of {devices} {of_runs}"
    return f"{figure}, above {worst.bound:.4g} {unit}, the power limit of {devices} {of_runs}"


def _advice(low: bool, mine: bool, worst: _Hit) -> str:
    if mine:
        return "an internal error: report it with the configuration"
    if worst.value <= 0.0:
        return "a counter that is not there reads 0: leave the figure out, missing is not zero"
    if low:
        return (
            "look for a sum over fewer devices, a rail taken for the board, a sensor that slept, or watts for kilowatts"
        )
    return "look for milliwatts, a sum over more devices than stated, wall power, or another power mode or cap"


def _unstated(evidence: Evidence) -> Iterator[Finding]:
    """Power without a scope can be held against the limit only."""
    measured = ("power_w", "energy_j_per_output_tok")
    runs = tuple(
        c.id for c in evidence.cases if c.record.power_scope is None and any(name in c.measured for name in measured)
    )
    if runs:
        yield Finding(
            check="power_bounds.scope", layer="bounds", fault="F5", severity="note", confidence="possible",
            runs=runs, metrics=measured, evidence={"runs": float(len(runs))},
            says=f"what the power covers is not stated in {counted(len(runs), 'run')}: unverified against "
            "idle power",
            next="state power_scope: board, module, or the rail",
        )  # fmt: skip
