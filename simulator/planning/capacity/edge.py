"""The edge: one question at a time on one device, within its power and time.

Every combination of model, number format, power mode and parameters of the strategy flies with the same seeds; those
within the limits are ranked by an objective.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulator.device import load_device
from simulator.errors import UserError
from simulator.instance import build_instance
from simulator.planning.capacity.flights import (
    MEANING,
    MOST_SHOWN,
    NO_FIT,
    OBJECTIVES,
    FlightOption,
    FlightPlan,
    flight_figures,
    flight_option,
    nearest,
)
from simulator.planning.capacity.limits import Limit
from simulator.planning.capacity.processes import in_order
from simulator.planning.capacity.serve_command import serve_command
from simulator.scenario import Scenario, installed_version, simulate_scenario
from simulator.strategies import get_strategy

MAX_FLIGHTS = 20_000


@dataclass(frozen=True, kw_only=True)
class EdgeSpace:
    """Everything that flies on the edge; sequences are all combined. power_modes None: all that a device has."""

    gpus: tuple[str, ...]
    strategy: str
    models: tuple[str | None, ...] = (None,)
    weights: tuple[str | None, ...] = (None,)
    kv_cache: tuple[str, ...] = ("auto",)
    power_modes: tuple[str, ...] | None = None
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)  # further fields of `Scenario`
    repetitions: int = 8
    seed: int = 0
    usd_per_hour: Mapping[str, float] = field(default_factory=dict)

    def settings(self) -> list[dict[str, Any]]:
        """All combinations. UserError for an unknown strategy or parameter, and for too many."""
        strategy = get_strategy(self.strategy)
        for values in _grid(self.parameters):
            strategy.resolve(values)
        found = []
        for gpu in self.gpus:
            modes = self.power_modes or tuple(mode.name for mode in load_device(gpu).power_modes) or (None,)
            axes = (self.models, self.weights, self.kv_cache, modes, _grid(self.parameters))
            for model, weights, kv_cache, mode, values in itertools.product(*axes):
                named = {"gpu": gpu, "model": model, "weights": weights, "kv_cache": kv_cache, "power_mode": mode}
                found.append({**named, "strategy": strategy.name, **values})
        if len(found) > MAX_FLIGHTS:
            raise UserError(f"candidates: {len(found):,} are too many to fly, at most {MAX_FLIGHTS:,}")
        return found


def _grid(parameters: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(parameters, values)) for values in itertools.product(*parameters.values())]


NAMED = ("gpu", "model", "weights", "kv_cache", "power_mode", "strategy")


def plan_edge(
    space: EdgeSpace,
    limits: Sequence[Limit],
    objective: str | None = None,
    accuracy: Any = None,
    jobs: int = 1,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> FlightPlan:
    """Which combinations stay within the limits, ranked by `objective`. UserError on bad input.

    accuracy: a `simulator.planning.accuracy.given.AccuracyTable`; combinations that it says nothing about lose.
    objective None: accuracy where it is given, otherwise compute.
    """
    objective = objective or ("accuracy" if accuracy is not None else "compute")
    if objective not in OBJECTIVES:
        raise UserError(f"objective '{objective}' is not known, expected one of {', '.join(OBJECTIVES)}")
    if objective == "accuracy" and accuracy is None:
        raise UserError("the objective accuracy needs the accuracies: give --accuracy FILE")
    candidates = space.settings()
    outcomes = []
    for start in range(0, len(candidates), 16 * jobs):
        part = candidates[start : start + 16 * jobs]
        outcomes += in_order(_edge_option, [(space, each, tuple(limits)) for each in part], jobs)
        if on_progress is not None:
            on_progress(len(outcomes), len(candidates))
    flown = [each for each in outcomes if isinstance(each, FlightOption)]
    scored = [replace(each, score=_score(each, objective, accuracy)) for each in flown]
    return _flight_plan(space, limits, objective, scored, [each for each in outcomes if isinstance(each, str)])


def _edge_option(space: EdgeSpace, settings: Mapping[str, Any], limits: tuple[Limit, ...]) -> FlightOption | str:
    """What a combination does on its device; or the sentence on why it cannot fly."""
    values = {name: value for name, value in settings.items() if name not in NAMED}
    price = space.usd_per_hour.get(settings["gpu"])
    scenario = Scenario(
        **{name: settings[name] for name in NAMED},
        **space.fixed,
        repetitions=space.repetitions,
        seed=space.seed,
        usd_per_hour=price,
        strategy_parameters=values,
    )
    try:
        result = simulate_scenario(scenario)
    except UserError as error:
        return str(error)
    strategy = get_strategy(space.strategy)
    instance = build_instance(scenario, diffusion=strategy.diffusion)
    shown = {**settings, "model": result.model, "weights": result.precision["weights"]}
    return flight_option(shown, flight_figures(result), result, limits, serve_command(instance))


def _score(option: FlightOption, objective: str, accuracy: Any) -> float:
    """By the objective; more is better, whatever it is."""
    if objective == "accuracy":
        facts = {("kv_cache_dtype" if name == "kv_cache" else name): value for name, value in option.settings.items()}
        found = accuracy.of(facts, " ".join(str(value) for value in option.settings.values()))
        return -math.inf if found is None else found[0].value
    figure = {"compute": "compute_flop", "tokens": "written_tok", "energy": "energy_j_mean", "time": "wall_s_p50",
              "cost": "cost_usd"}[objective]  # fmt: skip
    return option.figures[figure] * (1.0 if MEANING[objective][1] else -1.0)


def _flight_plan(
    space: EdgeSpace, limits: Sequence[Limit], objective: str, flown: list[FlightOption], failed: list[str]
) -> FlightPlan:
    # Of equal scores the one that takes least energy, then the one that is likeliest to hold.
    good = sorted((each for each in flown if each.met), key=lambda o: (-o.score, o.figures["energy_j_mean"]))
    known = [each for each in good if each.score > -math.inf]
    missed = sorted((each for each in flown if not each.met), key=lambda o: max(o.ratios.values()))
    reasons = Counter({f"misses {each.binding}": 0 for each in missed})
    for each in missed:
        reasons[f"misses {each.binding}"] += 1
    reasons[NO_FIT] += len(failed)
    reasons["no accuracy given"] += len(good) - len(known)
    options = tuple(replace(each, why_lost=_lost(known[0], each, objective)) for each in known[:MOST_SHOWN])
    return FlightPlan(
        strategy=get_strategy(space.strategy).name,
        served=False,
        objective=objective,
        limits=tuple(limits),
        options=options,
        candidates=len(flown) + len(failed),
        flights=len(flown) * space.repetitions,
        reasons={name: number for name, number in reasons.most_common() if number},
        relaxations=() if known else nearest(limits, missed),
        does_not_fit=tuple(dict.fromkeys(failed))[:3],
        assumptions=(
            "one question at a time; power is the highest of a flight where the calibration covers the whole board; "
            "elsewhere (Jetson) the budget of the power mode, because the rest of the module has the same supply",
            "energy is what the calibration covers: of a Jetson AGX Orin the GPU_SOC rail",
            f"{space.repetitions} repetitions each, all with seed {space.seed}",
            f"ranked by {MEANING[objective][0]}; of equals the one that takes least energy",
        ),
        seed=space.seed,
        version=installed_version(),
        missed=tuple(missed[:MOST_SHOWN]),
    )


def _lost(best: FlightOption, option: FlightOption, objective: str) -> str:
    if option is best:
        return ""
    if option.score == best.score:
        return "as good, but takes more energy"
    ratio = abs(option.score / best.score) if best.score else math.inf
    what = MEANING[objective][0].partition(",")[0].partition(":")[0]
    return f"{ratio:.2f} x the {what} of the best"
