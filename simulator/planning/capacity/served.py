"""Servers for a strategy: the cheapest ones that answer so many questions per hour.

For each deployment the largest number of questions in flight at once is found, by bisection, at which a question still
meets the limits; the rate at which a server then answers says how many servers it takes. Questions are taken to find a
free place; that the number in flight fluctuates is not counted, so some head-room belongs on top.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simulator.device import load_device
from simulator.errors import UserError
from simulator.instance import build_instance
from simulator.planning.capacity.candidates import Engine, Space, Variant
from simulator.planning.capacity.flights import MOST_SHOWN, NO_FIT, FlightOption, FlightPlan, flight_option, nearest
from simulator.planning.capacity.limits import Limit
from simulator.planning.capacity.serve_command import serve_command
from simulator.scenario import Scenario, installed_version, simulate_scenario
from simulator.strategies import get_strategy

MOST_IN_FLIGHT = 64
QUESTIONS_PER_PLACE = 3  # questions of a flight with so many places, so that they are mostly full
LEAST_QUESTIONS = 12


@dataclass(frozen=True)
class Questions:
    """Questions that arrive at a rate [1/s] and are worked on by a strategy with these parameters."""

    strategy: str
    per_s: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def plan_served(
    space: Space,
    questions: Questions,
    limits: Sequence[Limit],
    finalists: int = 5,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> FlightPlan:
    """The cheapest servers that answer questions at their rate within the limits. UserError on bad input.

    Variants are taken by the price of one replica; those of which one alone costs more than the last finalist are not
    flown.
    """
    get_strategy(questions.strategy).resolve(questions.parameters)
    space.prices  # noqa: B018  (told before anything flies)
    variants = sorted(
        (Variant(hardware, Engine(*engine[:2])) for hardware in space.hardware for engine in space.engines),
        key=lambda variant: space.usd_per_h(variant, 1),
    )
    search = _ServedSearch(space, questions, tuple(limits), finalists)
    for number, variant in enumerate(variants):
        search.look_at(variant)
        if on_progress is not None:
            on_progress(number + 1, len(variants))
    return search.plan(len(variants))


class _ServedSearch:
    def __init__(self, space: Space, questions: Questions, limits: tuple[Limit, ...], finalists: int) -> None:
        self._space, self._questions, self._limits, self._finalists = space, questions, limits, finalists
        self._reasons: Counter = Counter()
        self._options: list[FlightOption] = []
        self._missed: list[FlightOption] = []
        self._failed: list[str] = []
        self._flights = 0

    def look_at(self, variant: Variant) -> None:
        """Find how many questions at once a variant bears, and so how many replicas it takes."""
        prices = sorted(option.usd_per_h for option in self._options)
        dearest = prices[self._finalists - 1] if len(prices) >= self._finalists else math.inf
        if self._space.usd_per_h(variant, 1) > dearest:
            self._reasons["dearer even with one replica"] += 1
            return
        node = load_device(variant.hardware.gpu).interconnect.gpus_per_node
        if variant.hardware.devices > node:
            self._reasons["more GPUs than a node has"] += 1
            return
        try:
            alone = self._fly(variant, 1)
        except UserError as error:
            self._reasons[NO_FIT] += 1
            self._failed.append(str(error))
            return
        if not alone.met:
            self._reasons[f"misses {alone.binding} even with one question at a time"] += 1
            self._missed.append(alone)
            return
        best = self._most_in_flight(variant, alone)
        if best is None:
            self._reasons["more replicas than allowed"] += 1
            return
        self._options.append(best)

    def _most_in_flight(self, variant: Variant, alone: FlightOption) -> FlightOption | None:
        """By doubling and bisection: the option with the most questions at once that meets the limits."""
        low, high = 1, None
        best = alone
        while high is None and low < MOST_IN_FLIGHT:
            attempt = self._fly(variant, min(MOST_IN_FLIGHT, 2 * low))
            low, high, best = (attempt.in_flight, None, attempt) if attempt.met else (low, attempt.in_flight, best)
        while high is not None and high - low > max(1, low // 8):
            attempt = self._fly(variant, (low + high) // 2)
            low, high, best = (attempt.in_flight, high, attempt) if attempt.met else (low, attempt.in_flight, best)
        return best if best.replicas <= self._space.replicas[-1] else None

    def _fly(self, variant: Variant, in_flight: int) -> FlightOption:
        questions, space = self._questions, self._space
        number = max(LEAST_QUESTIONS, QUESTIONS_PER_PLACE * in_flight)
        scenario = Scenario(
            **space.choice(*variant),
            strategy=questions.strategy,
            strategy_parameters=questions.parameters,
            questions=number,
            concurrency=in_flight,
            repetitions=1,
            seed=questions.seed,
        )
        result = simulate_scenario(scenario)
        self._flights += 1
        summary = result.summary()
        latency = np.array([q.latency_s for flight in result.flights for q in flight.questions])
        each_per_s = summary["questions_per_s"]
        n = max(space.replicas[0], math.ceil(questions.per_s / each_per_s - 1e-9))
        figures = {
            **{f"wall_s_p{q}": summary[f"question_s_p{q}"] for q in (50, 90, 99)},
            "wall_s_mean": float(latency.mean()),
            "energy_j_mean": float(result.values("energy_j").sum()) / number,
            "power_w": summary["mean_power_w"] * n,
            "questions_per_s_each": each_per_s,
            "head_room": n * each_per_s / questions.per_s,
            "written_tok": float(result.values("written_tok").sum()) / number,
        }
        price = space.usd_per_h(variant, n, figures["power_w"])
        figures["cost_usd"] = price / 3600.0 / questions.per_s
        instance = build_instance(scenario, diffusion=get_strategy(questions.strategy).diffusion)
        settings = {**variant.hardware._asdict(), **variant.engine.settings(), "model": result.model}
        command = serve_command(instance, n)
        more = {"replicas": n, "in_flight": in_flight, "usd_per_h": price}
        found = flight_option(settings, figures, result, self._limits, command, **more)
        return replace(found, score=-price)

    def plan(self, candidates: int) -> FlightPlan:
        """What came of it."""
        options = sorted(self._options, key=lambda each: (each.usd_per_h, -each.figures["head_room"]))
        kept = options[: self._finalists]
        self._reasons["dearer"] += max(0, len(options) - len(kept))
        missed = sorted(self._missed, key=lambda each: max(each.ratios.values()))
        described = tuple(replace(each, why_lost=_dearer(kept[0], each)) for each in kept)
        return FlightPlan(
            strategy=get_strategy(self._questions.strategy).name,
            served=True,
            objective="cost",
            limits=self._limits,
            options=described,
            candidates=candidates,
            flights=self._flights,
            reasons={name: number for name, number in self._reasons.most_common() if number},
            relaxations=() if kept else nearest(self._limits, missed),
            does_not_fit=tuple(dict.fromkeys(self._failed))[:3],
            assumptions=(
                "a question finds a free place on some replica; that the number in flight fluctuates is not counted",
                "all GPUs are paid around the clock; power is the mean of all replicas at full load",
                f"every flight has seed {self._questions.seed}",
            ),
            seed=self._questions.seed,
            version=installed_version(),
            missed=tuple(missed[:MOST_SHOWN]),
        )


def _dearer(best: FlightOption, option: FlightOption) -> str:
    if option is best:
        return ""
    more = option.usd_per_h / best.usd_per_h - 1.0 if best.usd_per_h > 0.0 else 0.0
    return f"{100.0 * more:.3g} % dearer" if more > 1e-9 else "as cheap, but less head-room"
