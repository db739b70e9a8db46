"""A plan as text: the winner first, how to serve it, then why it won and what became of the other candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.planning.capacity.flights import MEANING, FlightOption, FlightPlan
from simulator.planning.capacity.limits import Limit, in_units
from simulator.planning.capacity.plan import Option, Plan
from simulator.report import units
from simulator.report.plain import columns

COLUMNS = ("", "deployment", "replicas", "GPUs", "$/h", "$/M output tok", "head-room", "binding", "P(limits hold)", "")


def render_plan(plan: Plan) -> str:
    """The whole plan of servers for traffic, ending in a newline."""
    best = plan.best
    lines = [*(_winner(plan, best) if best else _infeasible(plan)), ""]
    if best:
        lines += ["Serve one replica with", f"  {best.command.line}" if best.command.line else "  (not vLLM)"]
        lines += [f"  - {note}" for note in best.command.notes] + [""]
        lines += ["At the planned load", *_indent(columns(_figures(plan, best))), ""]
        rows = [COLUMNS, *(_row(number, option) for number, option in enumerate(plan.options, 1))]
        lines += ["Finalists, one per hardware", *_indent(columns(rows, right=(2, 3, 4, 5, 6, 8))), ""]
        if plan.limits and best.chance.log_sd:
            lines += [*_confidence(best), ""]
    lines += _searched(plan.candidates, f"{plan.simulations:,} simulations", plan.reasons)
    lines += [f"  {gpu}: {_reasons(reasons)}" for gpu, reasons in plan.reasons_by_gpu.items()] + [""]
    assumptions = list(plan.assumptions)
    if best:  # all GPUs are paid all the time, so what a run costs is not told
        own = [line for line in best.assumptions if not line.startswith("cost:")]
        assumptions += [f"price: {best.price_basis}", *own]
    return "\n".join([*lines, "Assumptions", *(f"  - {line}" for line in assumptions)]) + "\n"


def _winner(plan: Plan, best: Option) -> list[str]:
    margin = best.margin
    load = f"{plan.workload}" if not math.isfinite(plan.rate_per_s) else f"{plan.workload} ({plan.rate_per_s:.4g}/s)"
    held = f" within {_limits(plan.limits)}" if plan.limits else ""
    room = "no limit found" if margin.binding is None else f"{margin.head_room:.3g} x the load, then {margin.binding}"
    return [
        f"{load}{held}: {_deployment(best)} at ${best.usd_per_h:.4g} per hour "
        f"(${units.significant(best.usd_per_million_output_tok)} per million output tokens).",
        f"It bears {room}; the limits hold with probability {_probability(best.chance.probability)} under the "
        "calibration's error.",
    ]


def _deployment(option: Option) -> str:
    n = option.all_replicas
    return f"{n} replica{'s' if n > 1 else ''} of {option.variant.hardware.phrase()}, {option.variant.engine.phrase()}"


def _limits(limits: Sequence[Limit]) -> str:
    return ", ".join(limit.text() for limit in limits)


def _probability(value: float) -> str:
    return f"{100.0 * value:.0f} %" if value < 0.995 else "above 99 %"


def _infeasible(plan: Plan) -> list[str]:
    lines = [f"No candidate serves {plan.workload} within {_limits(plan.limits) or 'the rate'}."]
    lines += [
        f"  - {name}: {number:,} candidates cannot meet it, by bounds alone" for name, number in plan.by_limit.items()
    ]
    if plan.relaxations:
        lines += ["", "What would do:"]
        lines += [f"  - {each.sentence(plan.limits)}" for each in plan.relaxations]
    elif plan.does_not_fit:
        lines += ["", "Why:", *(f"  - {sentence}" for sentence in plan.does_not_fit)]
    return lines


def _figures(plan: Plan, best: Option) -> list[tuple[str, ...]]:
    rows = []
    for limit in plan.limits:
        value = in_units(best.figures[limit.figure], limit.kind)
        rows.append((limit.name, value, f"limit {in_units(limit.value, limit.kind)}", f"{best.ratios[limit.name]:.0%}"))
    figures = best.figures
    for name in ("ttft", "tpot", "e2e"):
        values = [figures[f"{name}_s_{q}"] for q in ("p50", "p90", "p99")]
        rows.append((f"{name.upper()} p50 / p90 / p99", units.together(values, units.milliseconds), "", ""))
    rows += [
        ("requests in the servers", units.significant(figures["batch_mean"]), "mean of all replicas", ""),
        ("KV cache in use", units.percent(figures["kv_share_max"]), "at most", ""),
        ("power", units.watts(figures["mean_power_w"]), "of all GPUs", ""),
        ("energy per request", units.joules(figures["energy_j_per_request"]), "", ""),
        ("cost per request", units.dollars(best.usd_per_request), "", ""),
        ("one replica sustains", f"{units.significant(best.rate_per_replica)} req/s",
         f"analytic bound {units.significant(best.bound_rate)} req/s", ""),
    ]  # fmt: skip
    return rows


def _row(number: int, option: Option) -> tuple[str, ...]:
    return (
        str(number),
        f"{option.variant.hardware.phrase()}; {option.variant.engine.phrase()}",
        str(option.all_replicas),
        str(option.devices),
        f"{option.usd_per_h:.2f}",
        units.significant(option.usd_per_million_output_tok),
        f"x {option.margin.head_room:.2f}",
        option.margin.binding or "-",
        _probability(option.chance.probability),
        option.why_lost,
    )


def _confidence(best: Option) -> list[str]:
    chance, calibration = best.chance, best.calibration
    lines = [
        f"Calibration {calibration['id']} ({calibration['status']}): times have a spread of "
        f"{100.0 * chance.log_sd:.0f} %; the limits hold until all times are {chance.slowest_factor:.3g} x as long"
    ]
    return lines + [f"  - {sentence}" for sentence in calibration["extrapolated"]]


def _searched(candidates: int, done: str, reasons: Mapping[str, int]) -> list[str]:
    return [f"Searched {candidates:,} candidates with {done}", f"  all: {_reasons(reasons)}"]


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


# -- strategies --------------------------------------------------------------------------------------------------


def render_flight_plan(plan: FlightPlan) -> str:
    """The whole plan for a strategy, on the edge or on servers, ending in a newline."""
    best = plan.best
    limits = f" within {_limits(plan.limits)}" if plan.limits else ""
    if best is None:
        lines = [f"No candidate flies {plan.strategy}{limits}."]
        lines += [f"  - {reason}: {number:,} candidates" for reason, number in plan.reasons.items()]
        if plan.relaxations:
            lines += ["", "What would do:", *(f"  - {sentence}" for sentence in plan.relaxations)]
        if plan.does_not_fit:
            lines += ["", "Why some cannot run:", *(f"  - {sentence}" for sentence in plan.does_not_fit)]
        lines += [""]
    else:
        ranked = "the cheapest" if plan.served else f"the best by {MEANING[plan.objective][0]}"
        lines = [f"{plan.strategy}{limits}: {_settings(best.settings)}, {ranked}."]
        lines += [_flight_line(plan, best), ""]
        if plan.served and best.command.line:
            lines += ["Serve one replica with", f"  {best.command.line}", *_indent(best.command.notes), ""]
        rows = [_flight_head(plan), *(_flight_row(plan, each, i) for i, each in enumerate(plan.options, 1))]
        lines += ["Within the limits", *_indent(columns(rows, right=range(2, len(rows[0]) - 1))), ""]
    lines += _searched(plan.candidates, f"{plan.flights:,} flights", plan.reasons)
    return "\n".join([*lines, "", "Assumptions", *(f"  - {line}" for line in plan.assumptions)]) + "\n"


def _settings(settings: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in settings.items() if value not in (None, "auto", False)}
    shown.pop("strategy", None)
    return ", ".join(f"{name} {value}" for name, value in shown.items() if (name, value) not in {("tp", 1), ("pp", 1)})


def _flight_line(plan: FlightPlan, best: FlightOption) -> str:
    chance = f"the limits hold with probability {_probability(best.probability)} under the calibration's error"
    if plan.served:
        questions = 3600.0 * best.figures["questions_per_s_each"] * best.replicas / best.figures["head_room"]
        return (
            f"{best.replicas} replica{'s' if best.replicas > 1 else ''} with {best.in_flight} questions at once each, "
            f"at ${best.usd_per_h:.4g} per hour "
            f"({units.dollars(best.figures['cost_usd'])} per answer at {questions:.4g} questions per hour); {chance}."
        )
    near = f"; nearest to {best.binding} ({best.ratios[best.binding]:.0%} of it)" if best.binding else ""
    return f"{chance[0].upper()}{chance[1:]}{near}."


def _flight_head(plan: FlightPlan) -> tuple[str, ...]:
    own = ("replicas", "at once", "$/h", "$/answer", "head-room") if plan.served else ("score",)
    return ("", "candidate", *own, "p50", "p90", "energy", "power", "tokens", "P(limits hold)", "")


def _flight_row(plan: FlightPlan, option: FlightOption, number: int) -> tuple[str, ...]:
    figures = option.figures
    own: tuple[str, ...] = (units.significant(abs(option.score)),)
    if plan.served:
        own = (
            str(option.replicas), str(option.in_flight), f"{option.usd_per_h:.2f}",
            units.significant(figures["cost_usd"]), f"x {figures['head_room']:.2f}",
        )  # fmt: skip
    return (
        str(number),
        _settings(option.settings),
        *own,
        units.seconds(figures["wall_s_p50"]),
        units.seconds(figures["wall_s_p90"]),
        units.joules(figures["energy_j_mean"]),
        units.watts(figures["power_w"]),
        f"{figures['written_tok']:,.0f}",
        _probability(option.probability),
        option.why_lost,
    )
