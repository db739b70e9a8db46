"""Where the time of requests and the energy of a server go, and what would change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.instance import Instance
from simulator.planning.explain import words
from simulator.planning.explain.accounts import CONSUMERS, PHASES
from simulator.planning.explain.explanation import Explanation, Part, Split
from simulator.planning.explain.faster import FASTER, HOST, LINK, Hardware, faster_instance
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
from simulator.planning.explain.served import Physics, Spent, Stays, spent_of, stays_of
from simulator.planning.explain.tokens import shorter_traffic
from simulator.planning.explain.watch import watched
from simulator.step_table import StepTable
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.result import TrafficResult
from simulator.traffic.scenario import TrafficScenario, TrafficSetup, prepare_traffic, simulate_traffic
from simulator.traffic.served import Served
from simulator.traffic.speculation import SpeculativeCosts, draft_of

FIGURES = ("e2e_s_mean", "ttft_s_p50", "tpot_s_p50", "output_tok_per_s", "energy_j")
Progress = Callable[[int, int], None]
ByPhase = dict[str, dict[str, float]]


def explain_traffic(
    scenario: TrafficScenario, result: TrafficResult | None = None, progress: Progress | None = None
) -> Explanation:
    """Explain `scenario`; `result`: of it, where it is there already. UserError on any bad input."""
    result = simulate_traffic(scenario) if result is None else result
    setup = prepare_traffic(scenario)
    served, diaries = watched(scenario.traffic, setup.deployment)
    spent = spent_of(served, diaries, _physics(setup))
    by_cause, by_part = (stays_of(served, diaries, spent.by_phase(kind)) for kind in ("causes", "parts"))
    causes = _request_split("mean end-to-end time by cause", served, by_cause.whole, served.requests.finished_s)
    title = "from the data sheet's roofline to the mean end-to-end time"
    ladder = _request_split(title, served, by_part.whole, served.requests.finished_s)
    server = _server_split(served, spent)
    return Explanation(
        kind="traffic",
        sentence=words.traffic_sentence(causes, ladder, server),
        notes=_notes(scenario, result),
        ladder=ladder,
        causes=causes,
        energy=_energy_split(served, spent),
        further=(_first_tokens(served, by_cause), server),
        calls={},
        figures=FIGURES,
        sensitivities=tried(_trials(scenario, setup, result), result.summary(), FIGURES, progress),
        facts=words.facts(result),
    )


def _notes(scenario: TrafficScenario, result: TrafficResult) -> tuple[str, ...]:
    figures, seats = result.summary(), result.settings["max_num_seqs"]
    steps = result.served.steps
    batch = int((steps.decode_sequences + steps.prefill_sequences).max(initial=0))
    found = [
        "of a request in the engine counts all that the engine does meanwhile, for others, too",
        f"at most {batch:,} sequences in a step, max_num_seqs {seats:,}; {figures['preemptions']:,.0f} preemptions",
    ]
    if scenario.prefill_replicas:
        found.append("the queue includes the way of the KV cache from prefill to decode")
    if result.overloaded():
        found.append("the server is overloaded: waiting times, and what changes them, grow with the length of the run")
    return tuple(found)


# -- where it goes -------------------------------------------------------------------------------------------


def _physics(setup: TrafficSetup) -> Physics:
    speculative = setup.scenario.speculative
    if speculative is None:
        return Physics(setup.instance.step_model)
    tokens = speculative.num_speculative_tokens
    draft = draft_of(setup.instance, setup.scenario, speculative)
    return Physics(setup.instance.step_model.verifying(1 + tokens), draft, tokens)


def _request_split(title: str, served: Served, stays: dict[str, dict[str, np.ndarray]], until_s: np.ndarray) -> Split:
    """Mean over answered requests of the time from arrival to `until_s` (N,)."""
    requests, done = served.requests, ~served.requests.refused
    if not done.any():
        return Split(title, "s", 0.0, (Part("queue", words.TITLES["queue"], 0.0),), {phase: {} for phase in stays})
    by_phase = {phase: {name: float(of[done].mean()) for name, of in named.items()} for phase, named in stays.items()}
    total = float((until_s - requests.arrival_s)[done].mean())
    front = float((requests.engine_s - requests.arrival_s)[done].mean())
    parts = _parts(by_phase)
    queue = total - front - sum(part.value for part in parts)
    ends = (Part("front end", words.TITLES["front end"], front), Part("queue", words.TITLES["queue"], queue))
    return Split(title, "s", total, (*parts, *ends), by_phase)


def _parts(by_phase: ByPhase) -> tuple[Part, ...]:
    names = next(iter(by_phase.values()))
    return tuple(
        Part(name, words.TITLES.get(name, name), sum(values[name] for values in by_phase.values())) for name in names
    )


def _first_tokens(served: Served, by_cause: Stays) -> Split:
    return _request_split("mean time to first token by cause", served, by_cause.first, served.requests.first_token_s)


def _server_split(served: Served, spent: Spent) -> Split:
    """A replica's time from the start to the end of the run, mean over replicas."""
    by_phase = _totals(spent, "causes", served.replicas)
    parts = _parts(by_phase)
    idle = served.end_s - sum(part.value for part in parts)
    return Split("time of the server", "s", served.end_s, (*parts, Part("idle", "nothing to do", idle)), by_phase)


def _totals(spent: Spent, kind: str, among: int = 1) -> ByPhase:
    return {
        phase: {name: float(of.sum()) / among for name, of in named.items()}
        for phase, named in spent.by_phase(kind).items()
    }


def _energy_split(served: Served, spent: Spent) -> Split:
    by_phase, total = _totals(spent, "joules"), served.energy_j()
    sums = {name: sum(by_phase[phase][name] for phase in PHASES) for name in CONSUMERS}
    sums["idle"] += total - sum(sums.values())  # what replicas draw while nothing runs
    parts = tuple(Part(name, words.TITLES[f"{name}_j"], value) for name, value in sums.items())
    return Split("energy by consumer", "J", total, parts, by_phase)


# -- what would change it --------------------------------------------------------------------------------------


def _on(setup: TrafficSetup, hardware: Hardware) -> Deployment:
    """The deployment on changed hardware."""
    instance = faster_instance(setup.instance, hardware)
    engine, deployment, offline = instance.calibration.parameters.engine, setup.deployment, setup.scenario.offline
    return replace(
        deployment,
        costs=_costs(instance, setup.scenario),
        request_s=0.0 if offline else engine.request_s,
        prompt_tok_s=0.0 if offline else engine.prompt_tok_s,
        transfer_start_s=deployment.transfer_start_s / (FASTER if HOST in hardware.of else 1.0),
        transfer_tok_s=deployment.transfer_tok_s / (FASTER if LINK in hardware.of else 1.0),
    )


def _costs(instance: Instance, scenario: TrafficScenario) -> Any:
    if scenario.speculative is not None:
        draft = draft_of(instance, scenario, scenario.speculative)
        return SpeculativeCosts(instance, draft, scenario.speculative)
    capacity = instance.memory.kv_capacity_tok
    return StepTable(instance.step_model, min(instance.settings.max_model_len or capacity, capacity))


def _trials(scenario: TrafficScenario, setup: TrafficSetup, result: TrafficResult) -> list[Trial]:
    instance = setup.instance

    def figures(change: Callable[[TrafficSetup], Deployment]) -> Figures:
        """With schedulers that have drawn nothing yet, so that all runs draw the same."""
        deployment = change(prepare_traffic(scenario))
        return replace(result, served=serve(scenario.traffic, deployment)).summary()

    def asked(**fields: Any) -> Figures:
        model = scenario.model or instance.model.name  # not another one that would fit now
        return simulate_traffic(replace(scenario, model=model, **fields)).summary()

    def memory() -> Figures:
        blocks = setup.deployment.kv_blocks
        return figures(lambda fresh: replace(fresh.deployment, kv_blocks=max(blocks + 1, round(FASTER * blocks))))

    def seats() -> Figures:
        return asked(engine_settings={**scenario.engine_settings, **more_seats(instance.settings)})

    trials = [
        *hardware_trials(instance.device, lambda hardware: figures(lambda fresh: _on(fresh, hardware))),
        Trial("max_num_seqs", seats_title(instance.settings), "engine", seats),
        Trial("kv_memory", "KV memory +10 %", "engine", memory),
    ]
    for name, title, less in (("output_tok", "outputs 10 % shorter", {"output": FEWER}),
                              ("prompt_tok", "prompts 10 % shorter", {"prompt": FEWER})):  # fmt: skip
        trials.append(
            Trial(name, title, "tokens", lambda less=less: asked(traffic=shorter_traffic(scenario.traffic, **less)))
        )
    for name, title, fields in lower_precisions(instance.device, instance.precision):
        trials.append(Trial(name, title, "precision", lambda fields=fields: asked(**fields)))
    return trials
