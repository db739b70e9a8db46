"""The plan: the cheapest deployments that meet the limits, how sure that is, why others lost, and how to serve it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulator.planning.capacity.candidates import Space, Variant
from simulator.planning.capacity.lab import OVERLOAD, Lab
from simulator.planning.capacity.limits import Limit
from simulator.planning.capacity.margins import Chance, Margin, chance, margin
from simulator.planning.capacity.relax import Relaxation, relaxations
from simulator.planning.capacity.search import FINALISTS, Confirmed, Found, run_all, search
from simulator.planning.capacity.serve_command import ServeCommand, serve_command
from simulator.planning.capacity.workload import Workload
from simulator.result import plain
from simulator.scenario import installed_version

SAME_PRICE = 1e-9


@dataclass(frozen=True)
class Option:
    """One deployment that holds, and everything that is told of it."""

    variant: Variant
    replicas: int  # that decode, where others prefill
    devices: int
    usd_per_h: float
    usd_per_million_output_tok: float
    usd_per_request: float
    margin: Margin
    chance: Chance
    rate_per_replica: float  # that it sustains within the limits; of the whole, by all its replicas
    bound_rate: float  # what the analytic bound allows one replica
    figures: Mapping[str, float]
    ratios: Mapping[str, float]
    command: ServeCommand
    calibration: Mapping[str, Any]
    assumptions: tuple[str, ...]
    price_basis: str
    why_lost: str = ""  # against the best

    @property
    def all_replicas(self) -> int:
        """Prefilling ones included."""
        return self.variant.replicas(self.replicas)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        hardware, engine = self.variant
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "variant"}
        own |= {"margin": vars(self.margin), "chance": vars(self.chance), "command": vars(self.command)}
        return plain({"hardware": hardware._asdict(), "engine": engine._asdict(), **own})


@dataclass(frozen=True)
class Plan:
    """What came of a search. `options`: the best first, one per hardware; empty where the request is infeasible."""

    model: str
    workload: str
    rate_per_s: float  # NaN with clients
    limits: tuple[Limit, ...]
    options: tuple[Option, ...]
    candidates: int
    simulations: int
    reasons: Mapping[str, int]  # candidates by why they were not chosen
    reasons_by_gpu: Mapping[str, Mapping[str, int]]
    by_limit: Mapping[str, int]  # candidates that a bound rules out, by limit
    does_not_fit: tuple[str, ...]  # sentences, one per GPU at most
    relaxations: tuple[Relaxation, ...]
    assumptions: tuple[str, ...]
    seed: int
    version: str
    requests: int = 0  # of one simulation
    space: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Option | None:
        """The cheapest; None where nothing does."""
        return self.options[0] if self.options else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        own["limits"] = [vars(limit) for limit in self.limits]
        own["options"] = [option.to_dict() for option in self.options]
        own["relaxations"] = [
            {
                "limits": each.limits,
                "hardware": each.variant.hardware._asdict(),
                "engine": each.variant.engine._asdict(),
                "replicas": each.replicas,
                "usd_per_h": each.usd_per_h,
                "sentence": each.sentence(self.limits),
            }
            for each in self.relaxations
        ]
        return plain({"feasible": self.best is not None, **own})


def make_plan(
    space: Space,
    workload: Workload,
    limits: Sequence[Limit],
    jobs: int = 1,
    finalists: int = FINALISTS,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Plan:
    """Search `space` for the cheapest deployments that serve `workload` within `limits`. UserError on bad input."""
    lab = Lab(space, workload, limits)
    found = search(lab, jobs, finalists, on_progress)
    options = _options(lab, found, jobs)
    return Plan(
        model=space.model,
        workload=workload.title,
        rate_per_s=workload.rate_per_s,
        limits=tuple(limits),
        options=options,
        candidates=len(space),
        simulations=found.simulations,
        reasons=dict(found.total().most_common()),
        reasons_by_gpu={gpu: dict(reasons.most_common()) for gpu, reasons in found.reasons.items()},
        by_limit=dict(found.by_limit.most_common()),
        does_not_fit=tuple({each.gpu: sentence for each, sentence in found.sentences.items()}.values()),
        relaxations=() if options else relaxations(lab, found, jobs),
        assumptions=(*workload.assumptions, *_assumptions(lab)),
        seed=workload.seed,
        version=installed_version(),
        requests=workload.requests,
        space={name: getattr(space, name) for name in space.__dataclass_fields__},
    )


def _options(lab: Lab, found: Found, jobs: int) -> tuple[Option, ...]:
    """The confirmed ones with their margins; of equally cheap settings the one with the most head-room."""
    if not found.confirmed:
        return ()
    others = [each for each in found.confirmed if each not in found.ties]
    everyone = [*found.ties, *others]
    margins = run_all(lab, jobs, _margin, [(each,) for each in everyone])
    order = sorted(range(len(everyone)), key=lambda i: (round(everyone[i].usd_per_h, 9), -margins[i].head_room, i))
    chosen: dict[Any, int] = {}
    for i in order:
        chosen.setdefault(everyone[i].variant.hardware, i)
    finalists = list(chosen.values())[: len(found.confirmed)]
    described = run_all(lab, jobs, _described, [(everyone[i], margins[i]) for i in finalists])
    best = described[0]
    return (best, *(replace(option, why_lost=_why_lost(best, option)) for option in described[1:]))


def _why_lost(best: Option, option: Option) -> str:
    dearer = option.usd_per_h / best.usd_per_h - 1.0 if best.usd_per_h > 0.0 else 0.0
    if dearer > SAME_PRICE:
        return f"{100.0 * dearer:.3g} % dearer"
    return f"as cheap, but less head-room ({option.margin.head_room:.3g} against {best.margin.head_room:.3g})"


def _margin(lab: Lab, confirmed: Confirmed) -> Margin:
    found = margin(lab, confirmed.trial, _most_load(confirmed, lab.workload.planned_rate_per_s))
    return replace(found, head_room=found.head_room * lab.workload.reserve)


def _most_load(confirmed: Confirmed, rate_per_s: float) -> float:
    """A load that the bound rules out, and a little more."""
    if math.isnan(rate_per_s) or not math.isfinite(confirmed.bound.rate_per_s):
        return math.inf
    return max(1.5, 1.5 * confirmed.bound.rate_per_s * confirmed.replicas / rate_per_s)


def _described(lab: Lab, confirmed: Confirmed, found: Margin) -> Option:
    """Everything that is told of a finalist."""
    variant, n, trial = confirmed.variant, confirmed.replicas, confirmed.trial
    result = lab.trial_result(variant, n)
    instance = lab.setup(variant).instance
    rate = trial.figures["requests_per_s"] if lab.workload.clients else lab.workload.rate_per_s
    output_tok = float(lab.workload.output_tok[: max(lab.workload.requests, 1)].mean())
    fixed = lab.space.fixed
    return Option(
        variant=variant,
        replicas=n,
        devices=variant.devices(n),
        usd_per_h=confirmed.usd_per_h,
        usd_per_million_output_tok=confirmed.usd_per_h / (3600.0 * rate * output_tok) * 1e6,
        usd_per_request=confirmed.usd_per_h / (3600.0 * rate),
        margin=found,
        chance=chance(lab, trial, result.interval_log_sd),
        rate_per_replica=rate * found.head_room / n,
        bound_rate=confirmed.bound.rate_per_s,
        figures=trial.figures,
        ratios=trial.ratios,
        command=serve_command(
            instance, n, variant.engine.prefill_replicas, fixed.get("engine"), fixed.get("enforce_eager", False)
        ),
        calibration=result.calibration,
        assumptions=result.assumptions,
        price_basis=lab.space.prices[variant.hardware.gpu][2],
    )


def _assumptions(lab: Lab) -> tuple[str, ...]:
    """What every plan rests on."""
    workload = lab.workload
    many = "the requests of the trace" if workload.arrival_s is not None else f"{workload.requests:,} requests or more"
    return (
        "replicas share nothing and take turns, so one of them with its share of the requests stands for all",
        f"each simulation serves {many} with seed {workload.seed}; another seed moves a p99 by some per cent",
        "all GPUs are paid around the clock, whatever the load",
        f"a deployment holds when every limit is met and its queue does not grow ({OVERLOAD} is kept up with)",
        "more replicas are taken to serve the same requests no worse",
    )
