"""Where the time and the energy of a strategy's flights go, and what would change them.

Times are split on the flights in the middle: those whose wall time is (or whose mean is) the reported p50.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.batch import Batch
from simulator.flight import fly
from simulator.operators import STREAM_PREFIX_TOK
from simulator.planning.explain import words
from simulator.planning.explain.accounts import CAUSES, CONSUMERS, PHASES, PROMPTS, STEP_PARTS, Meter
from simulator.planning.explain.explanation import Explanation, Part, Split
from simulator.planning.explain.faster import Hardware, faster_instance, more_memory
from simulator.planning.explain.sensitivity import (
    FEWER,
    Figures,
    Trial,
    hardware_trials,
    lower_precisions,
    more_seats,
    seats_title,
    tried,
)
from simulator.planning.explain.tokens import shorter_problem, shorter_questions, shorter_strategy
from simulator.result import CallRecord, Flight, SimulationResult
from simulator.scenario import Scenario, Setup, prepare, simulate_scenario
from simulator.step import DecodeRun, StepCost, StepModel
from simulator.steps import Steps
from simulator.strategies.from_file import mistakes_told

FIGURES = ("wall_s_p50", "ttft_s_p50", "tpot_s_p50", "output_tok_per_s", "energy_j_p50")
Progress = Callable[[int, int], None]


def explain_flights(
    scenario: Scenario, result: SimulationResult | None = None, progress: Progress | None = None
) -> Explanation:
    """Explain `scenario`; `result`: of it, where it is there already. UserError on any bad input."""
    result = simulate_scenario(scenario) if result is None else result
    scenario = replace(scenario, save_schedule=None, idealized=False)
    setup = prepare(scenario)
    metered = _flown(_metered(setup))
    wall, energy = _middle(result.values("wall_s")), _middle(result.values("energy_j"))
    read = [metered[i] for i in wall], [metered[i] for i in energy]
    gpus = scenario.replicas + sum(setup.cast.own_gpu.values())
    causes = _time_split("by cause", read[0], "cause", CAUSES, gpus)
    ladder = _time_split("from the data sheet's roofline to the wall time", read[0], "part", STEP_PARTS, gpus)
    path = _path_split([result.flights[i] for i in wall])
    return Explanation(
        kind="strategy",
        sentence=words.flight_sentence(causes, ladder, path, gpus),
        notes=_notes(result, gpus),
        ladder=ladder,
        causes=causes,
        energy=_energy_split(read[1]),
        further=(path,),
        calls=_calls(result),
        figures=FIGURES,
        sensitivities=tried(_trials(scenario, setup, result), result.summary(), FIGURES, progress),
        facts=words.facts(result),
    )


def _notes(result: SimulationResult, gpus: int) -> tuple[str, ...]:
    found, flights = [], len(result.flights)
    if flights > 1:
        found.append(f"times are those of the flights in the middle of {flights}: their wall time is the p50")
    if gpus > 1:
        found.append(f"seconds are means over {gpus} groups of GPUs, which do not work all of the wall time")
    return tuple(found)


# -- where it goes -------------------------------------------------------------------------------------------


class _MeteredModel:
    """A step model whose shares say everything that a `Meter` tells: they become those of the flight."""

    def __init__(self, model: StepModel) -> None:
        self._model, self._meter = model, Meter(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def verifying(self, tokens: int) -> _MeteredModel:
        return _MeteredModel(self._model.verifying(tokens))

    def step(self, batch: Batch) -> StepCost:
        cost, account = self._meter.of_batch(batch)
        phase = PROMPTS if batch.prefill else "decode"
        return replace(cost, shares=_keyed(account, phase, float))

    def decode_run(self, context_tok: np.ndarray, steps: int, growth: np.ndarray | None = None) -> DecodeRun:
        model = self._model
        if model.streams > 1:
            behind = Steps.from_decode_run(context_tok + STREAM_PREFIX_TOK, steps, model.rules, growth)
            rows = behind.in_streams(model.streams)
        else:
            rows = Steps.from_decode_run(context_tok, steps, model.rules, growth)
        costs, account = self._meter.of_steps(rows)
        return DecodeRun(costs.seconds, costs.joules, _keyed(account, "decode", lambda values: float(np.sum(values))))


def _keyed(account: Any, phase: str, number: Callable[[Any], float]) -> dict[Any, float]:
    named = (("cause", account.causes), ("part", account.parts), ("joule", account.joules))
    return {(what, phase, name): number(value) for what, values in named for name, value in values.items()}


def _metered(setup: Setup) -> Setup:
    instances = {
        role: replace(found, step_model=_MeteredModel(found.step_model)) for role, found in setup.cast.instances.items()
    }
    return replace(setup, step_model=_MeteredModel(setup.step_model), cast=replace(setup.cast, instances=instances))


def _middle(values: np.ndarray) -> list[int]:
    """Which of `values` is the median, or which two have it as their mean."""
    order, n = np.argsort(values, kind="stable"), len(values)
    return [int(i) for i in order[(n - 1) // 2 : n // 2 + 1]]


def _mean(flights: list[Flight], key: tuple) -> float:
    return float(np.mean([flight.shares_s.get(key, 0.0) for flight in flights]))


def _time_split(title: str, flights: list[Flight], what: str, names: tuple[str, ...], gpus: int) -> Split:
    by_phase = {phase: {name: _mean(flights, (what, phase, name)) / gpus for name in names} for phase in PHASES}
    parts = [Part(name, words.TITLES.get(name, name), sum(by_phase[phase][name] for phase in PHASES)) for name in names]
    total = float(np.mean([flight.wall_s for flight in flights]))
    idle = total - sum(part.value for part in parts)
    return Split(title, "s", total, (*parts, Part("idle", words.TITLES["idle"], idle)), by_phase)


def _energy_split(flights: list[Flight]) -> Split:
    by_phase = {phase: {name: _mean(flights, ("joule", phase, name)) for name in CONSUMERS} for phase in PHASES}
    total = float(np.mean([flight.energy_j for flight in flights]))
    sums = {name: sum(by_phase[phase][name] for phase in PHASES) for name in CONSUMERS}
    sums["idle"] += total - sum(sums.values())  # what GPUs draw while nothing runs
    parts = tuple(Part(name, words.TITLES[f"{name}_j"], value) for name, value in sums.items())
    return Split("energy by consumer", "J", total, parts, by_phase)


def _path_split(flights: list[Flight]) -> Split:
    """What held up the end, by call and phase: from the start to the end along `Flight.critical_path`."""
    sums: dict[tuple[str, str], float] = {}
    for flight in flights:
        for key, seconds in _path(flight).items():
            sums[key] = sums.get(key, 0.0) + seconds / len(flights)
    total = float(np.mean([flight.wall_s for flight in flights]))
    parts = [Part(f"{label}: {phase}" if label else phase, "", value) for (label, phase), value in sums.items()]
    return Split("critical path", "s", total, tuple(part for part in parts if part.value > 0.0))


def _path(flight: Flight) -> dict[tuple[str, str], float]:
    """(label, phase) -> seconds that sum to the wall time; time between two calls belongs to none of them."""
    sums: dict[tuple[str, str], float] = {}
    now = 0.0
    for node in reversed(flight.critical_path()):
        for phase, end in _phases(node):
            key = ("", phase) if phase == "between calls" else (node.label, phase)
            sums[key] = sums.get(key, 0.0) + max(0.0, end - now)
            now = max(now, end)
    rest = ("", "between calls")
    sums[rest] = sums.get(rest, 0.0) + flight.wall_s - now
    return sums


def _phases(node: Any) -> tuple[tuple[str, float], ...]:
    """(phase, its end) in order."""
    if isinstance(node, CallRecord):
        return (
            ("between calls", node.submitted_s), ("queue", node.scheduled_s), ("prefill", node.first_token_s),
            ("decode", node.finished_s),
        )  # fmt: skip
    return ("between calls", node.started_s), ("wait", node.finished_s)


def _calls(result: SimulationResult) -> dict[str, dict[str, float]]:
    """Mean seconds of a call by label and phase, and calls per run; over all repetitions."""
    found: dict[str, list[CallRecord]] = {}
    for flight in result.flights:
        for call in flight.calls:
            found.setdefault(call.label, []).append(call)
    return {
        label: {
            "calls": len(calls) / len(result.flights),
            "queue_s": float(np.mean([call.scheduled_s - call.submitted_s for call in calls])),
            "prefill_s": float(np.mean([call.first_token_s - call.scheduled_s for call in calls])),
            "decode_s": float(np.mean([call.finished_s - call.first_token_s for call in calls])),
        }
        for label, calls in found.items()
    }


# -- what would change it --------------------------------------------------------------------------------------


def _flown(setup: Setup, **changed: Any) -> tuple[Flight, ...]:
    """The flights of `setup`, quietly."""
    scenario = setup.scenario
    what = {
        "strategy": setup.strategy, "parameters": scenario.strategy_parameters, "questions": setup.questions, **changed
    }  # fmt: skip
    with mistakes_told(scenario.strategy):
        return fly(
            setup.step_model, setup.memory, setup.settings, repetitions=scenario.repetitions, seed=scenario.seed,
            step_by_step=scenario.step_by_step, replicas=scenario.replicas, roles=setup.cast.crews(), **what,
        )  # fmt: skip


def _trials(scenario: Scenario, setup: Setup, result: SimulationResult) -> list[Trial]:
    def figures(flights: tuple[Flight, ...]) -> Figures:
        return replace(result, flights=flights).summary()

    def on(hardware: Hardware) -> Figures:
        instances = {role: faster_instance(found, hardware) for role, found in setup.cast.instances.items()}
        changed = faster_instance(setup, hardware)
        return figures(_flown(replace(changed, cast=replace(setup.cast, instances=instances))))

    def asked(**fields: Any) -> Figures:
        model = scenario.model or setup.model.name  # not another one that would fit now
        return simulate_scenario(replace(scenario, model=model, **fields)).summary()

    def seats() -> Figures:
        return asked(engine_settings={**scenario.engine_settings, **more_seats(setup.settings)})

    trials = [
        *hardware_trials(setup.device, on),
        Trial("max_num_seqs", seats_title(setup.settings), "engine", seats),
        Trial("kv_memory", "KV memory +10 %", "engine", lambda: figures(_flown(more_memory(setup)))),
        *_token_trials(setup, lambda **changed: figures(_flown(setup, **changed))),
    ]
    for name, title, fields in lower_precisions(setup.device, setup.precision):
        trials.append(Trial(name, title, "precision", lambda fields=fields: asked(**fields)))
    return trials


def _token_trials(setup: Setup, flown: Callable[..., Figures]) -> list[Trial]:
    strategy, given = setup.strategy, dict(setup.scenario.strategy_parameters)

    def outputs() -> Figures:
        return flown(strategy=shorter_strategy(strategy, output=FEWER))

    def prompts() -> Figures:
        return flown(
            strategy=shorter_strategy(strategy, prompt=FEWER),
            parameters=shorter_problem(strategy, given, FEWER),
            questions=shorter_questions(setup.questions, FEWER),
        )

    found = [Trial("prompt_tok", "questions and instructions 10 % shorter", "tokens", prompts)]
    if not strategy.diffusion:  # whose passes are whole texts, not lengths
        found.insert(0, Trial("output_tok", "outputs 10 % shorter", "tokens", outputs))
    return found
