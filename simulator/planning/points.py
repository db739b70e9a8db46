"""One point of a plan: settings by name in, figures with intervals out.

    outcome = answer({"gpu": "orin", "strategy": "pdr", "width": 8})
    outcome.figures["wall_s_p50"], outcome.intervals["wall_s_p50"]

`Settings` are flat: names are those of the options of `simulate` (kind "strategy") or `simulate traffic` (kind
"traffic") without the dashes, parameters of the strategy among them; values are text as typed, numbers or booleans.
Two points with the same seed draw the same lengths, so that their repetitions are pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simulator.cli.settings import KINDS, name_settings, read_settings, scenario_of
from simulator.errors import UserError
from simulator.result import SimulationResult, plain
from simulator.traffic.metrics import LATENCIES, QUANTILES, latencies
from simulator.traffic.result import INTERVALS, THROUGHPUTS, TrafficResult

__all__ = [
    "FIGURES", "KINDS", "Outcome", "Settings", "answer", "failed", "name_settings", "outcome_of", "read_settings",
    "scenario_of", "simulate_settings",
]  # fmt: skip

Settings = Mapping[str, Any]
Interval = tuple[float, float]
Result = SimulationResult | TrafficResult
Progress = Callable[[int, int], None]

OK, FAILED = "ok", "failed"

# Headline figure of a flight -> kind of spread that it has.
SPREADS = {
    "wall_s_p50": "time", "wall_s_p90": "time", "wall_s_p99": "time",
    "ttft_s_p50": "ttft", "ttft_s_p90": "ttft", "tpot_s_p50": "tpot", "tpot_s_p90": "tpot",
    "question_s_p50": "time", "question_s_p90": "time", "question_s_p99": "time", "questions_per_s": "time",
    "mean_power_w": "power", "energy_j_p50": "energy", "energy_j_per_output_tok": "energy", "output_tok_per_s": "time",
}  # fmt: skip


# Every figure that an outcome of a kind may have, in the order in which they are shown; some only where they apply.
FIGURES = {
    "strategy": (
        "wall_s_p50", "wall_s_p90", "wall_s_p99",
        *(f"{name}_tok_p50" for name in ("critical_path", "read", "computed", "written", "reread", "b_seq", "b_total")),
        "ttft_s_p50", "ttft_s_p90", "tpot_s_p50", "tpot_s_p90", "wait_s_p50",
        "question_s_p50", "question_s_p90", "question_s_p99", "questions_per_s",
        "peak_memory_byte", "mean_power_w", "energy_j_p50", "cost_usd_p50", "energy_j_per_output_tok",
        "output_tok_per_s",
    ),
    "traffic": (
        "requests", "completed", "refused", "input_tok", "output_tok", "cached_tok", "prefix_cache_hit_share",
        "preemptions", "recomputed_tok",
        *(f"{name}_{which}" for name in LATENCIES for which in ("mean", "std", "min", *QUANTILES, "max")),
        "duration_s", *THROUGHPUTS,
        "steady_window_s", *(f"steady_{name}" for name in THROUGHPUTS),
        "batch_mean", "batch_max", "queue_mean", "queue_max", "kv_share_mean", "kv_share_max", "steps", "busy_share",
        "prefill_share_of_busy", "energy_j", "mean_power_w", "energy_j_per_output_tok", "energy_j_per_request",
        "good_share", "good_requests_per_s", "cost_usd", "usd_per_million_output_tok", "usd_per_request",
        "overloaded_waiting",
    ),
}  # fmt: skip
WITH_INTERVAL = {
    "strategy": frozenset({*SPREADS, "cost_usd_p50"}),
    "traffic": frozenset({*INTERVALS, *THROUGHPUTS}),
}


@dataclass(frozen=True)
class Outcome:
    """What one simulation answers.

    settings: as given, under canonical names. figures: those of the result's `summary()`, SI, units in the names
    (wall_s_p50, energy_j_p50, cost_usd_p50, peak_memory_byte, mean_power_w, ...; of traffic ttft_s_p99, cost_usd, ...).
    intervals: the 90 % ones (low, high) of those figures that have one. status: "ok", or "failed" with the reason in
    one sentence and no figures. per_repetition: arrays that can be paired with those of another outcome of the same
    seed: wall_s, energy_j, cost_usd (repetitions,) of a strategy; ttft_s, tpot_s, e2e_s (requests,) of traffic.
    log_sd: standard deviations of log(measured / predicted) by kind (time, energy, ttft, tpot, power). facts: what
    the figures rest on, in plain JSON types.
    """

    settings: dict[str, Any]
    kind: str
    status: str = OK
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    per_repetition: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: str = ""  # id of the profile
    log_sd: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # hardware, model, precision, calibration, seed, version, ...

    @property
    def ok(self) -> bool:
        """Whether there are figures."""
        return self.status == OK

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, in plain JSON types."""
        names = ("settings", "kind", "status", "reason", "figures", "intervals", "calibration", "log_sd", "facts")
        return plain({name: getattr(self, name) for name in names})


def answer(
    settings: Settings, kind: str = "strategy", *, keep_going: bool = False, progress: Progress | None = None
) -> Outcome:
    """Simulate one point.

    keep_going: a point that cannot be simulated (does not fit, settings that contradict each other) is an Outcome with
    status "failed". Otherwise, and for names that nobody knows in any case, UserError.
    """
    named = name_settings(settings, kind)
    try:
        return outcome_of(simulate_settings(named, kind, progress), read_settings(named, kind), kind)
    except UserError as error:
        if not keep_going:
            raise
        return failed(named, kind, str(error))


def failed(settings: Settings, kind: str, reason: str) -> Outcome:
    """The outcome of a point that cannot be simulated; the reason becomes one line."""
    return Outcome(dict(settings), kind, FAILED, " ".join(reason.split()))


def simulate_settings(settings: Settings, kind: str = "strategy", progress: Progress | None = None) -> Result:
    """The whole result of one point. UserError on any bad input."""
    scenario, goodput = scenario_of(settings, kind)
    if kind == "strategy":
        from simulator.scenario import simulate_scenario

        return simulate_scenario(scenario, progress)
    from simulator.traffic.scenario import simulate_traffic

    return replace(simulate_traffic(scenario, progress), goodput=goodput)


def outcome_of(result: Result, settings: Settings, kind: str) -> Outcome:
    """The outcome of a result that is there."""
    summary = result.summary()
    ends = {f"{name}_{end}" for name in (*summary, "wall_s", "energy_j") for end in ("lo", "hi")}
    figures = {name: float(value) for name, value in summary.items() if name not in ends}
    find = _flight_intervals if kind == "strategy" else _traffic_intervals
    return Outcome(
        settings=dict(settings),
        kind=kind,
        figures=figures,
        intervals=find(result, figures),
        per_repetition=_pairs(result),
        calibration=result.calibration["id"],
        log_sd=dict(result.interval_log_sd),
        facts=_facts(result, kind),
    )


def _flight_intervals(result: SimulationResult, figures: dict[str, float]) -> dict[str, Interval]:
    found = {name: result.interval(figures[name], kind) for name, kind in SPREADS.items() if name in figures}
    # Time and energy are taken to be off in the same direction, so the ends of the cost are those of both.
    wall, energy = result.values("wall_s"), result.values("energy_j")
    ends = zip(result.interval(1.0), result.interval(1.0, "energy"))
    low, high = (float(np.median(_usd(result, wall * slower, energy * more))) for slower, more in ends)
    return found | {"cost_usd_p50": (low, high)}


def _traffic_intervals(result: TrafficResult, figures: dict[str, float]) -> dict[str, Interval]:
    found = {name: result.interval(figures[name], kind) for name, kind in INTERVALS.items()}
    return found | {name: result.throughput_interval(figures[name]) for name in THROUGHPUTS}


def _usd(result: SimulationResult, wall_s: np.ndarray, energy_j: np.ndarray) -> np.ndarray:
    price = result.price
    return wall_s / 3600.0 * price["usd_per_hour"] + energy_j / 3.6e6 * price["usd_per_kwh"]


def _pairs(result: Result) -> dict[str, np.ndarray]:
    """What can be paired with another outcome of the same seed."""
    if isinstance(result, TrafficResult):
        found = latencies(result.served.requests)
        return {name: found[name] for name in ("ttft_s", "tpot_s", "e2e_s")}
    wall, energy = result.values("wall_s"), result.values("energy_j")
    return {"wall_s": wall, "energy_j": energy, "cost_usd": _usd(result, wall, energy)}


def _facts(result: Result, kind: str) -> dict[str, Any]:
    """From what the figures were computed, as far as it is short."""
    names = ["gpu", "gpu_name", "power_mode", "model", "precision", "parallel", "price", "power", "seed", "version"]
    names += ["strategy", "strategy_parameters"] if kind == "strategy" else ["traffic", "replicas", "routing"]
    calibration = ("id", "status", "data_hash", "extrapolated")
    return plain(
        {
            **{name: getattr(result, name) for name in names},
            "calibration": {name: result.calibration[name] for name in calibration},
        }
    )
