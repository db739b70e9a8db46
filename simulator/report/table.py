"""What a result says, as rows of text: the content that the plain and the terminal renderer share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.report import units
from simulator.result import CallRecord, SimulationResult

if TYPE_CHECKING:
    from simulator.traffic.result import TrafficResult

CALL_COLUMNS = ("call", "prompt tok", "cached tok", "output tok", "queue", "TTFT", "TPOT", "time")


@dataclass(frozen=True)
class Section:
    """A titled block of (name, value, remark) rows."""

    title: str
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Report:
    """Everything that is shown for one result, already as text, in the order of showing."""

    headline: str
    warning: str  # what the warnings have in common; empty when there are none
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    shares: tuple[tuple[str, float], ...]  # (cause, fraction), largest first
    calls: tuple[tuple[str, ...], ...]  # rows of `call_columns`; no table without rows
    calls_note: str
    assumptions: tuple[str, ...]
    calibration: tuple[str, ...]
    call_columns: tuple[str, ...] = CALL_COLUMNS
    calls_title: str = "Calls"
    shares_note: str = "share of busy time"
    alarms: tuple[str, ...] = ()  # sentences about the run itself, before the warnings about its calibration


def build_report(result: SimulationResult) -> Report:
    """The full report of one result."""
    figures = result.summary()
    shares = sorted(result.shares().items(), key=lambda item: -item[1])
    repetitions = len(result.flights)
    flown = f"{repetitions} repetition{'s' if repetitions != 1 else ''}"
    return Report(
        headline=_headline(result, figures),
        warning=warning_lead(result),
        warnings=tuple(result.calibration["extrapolated"]),
        sections=(
            Section("Time", _time_rows(result, figures)),
            Section(f"Tokens per run (medians of {flown})", _token_rows(figures)),
            Section("Memory, energy, money", _resource_rows(result, figures)),
            *_idealized_sections(result),
            *_engine_sections(result),
        ),
        shares=tuple(shares),
        calls=_call_rows(result),
        calls_note=f"medians over the calls of {flown}; numbers of calls are means",
        assumptions=result.assumptions,
        calibration=calibration_rows(result),
    )


def _headline(result: SimulationResult, figures: dict[str, float]) -> str:
    low_high = units.span(figures["wall_s_lo"], figures["wall_s_hi"], units.seconds)
    return (
        f"{result.strategy} with {result.model} ({result.precision['weights']} weights) on {result.hardware()} "
        f"takes {units.seconds(figures['wall_s_p50'])} (90 % interval {low_high}) "
        f"and {units.joules(figures['energy_j_p50'])}."
    )


def warning_lead(result: SimulationResult | TrafficResult) -> str:
    """Why the reader should believe less of this; shown directly under the headline."""
    calibration = result.calibration
    if not calibration["extrapolated"]:
        return ""
    lead = {
        "defaults": "not calibrated on this GPU, so the interval is a wide guess",
        "borrowed": "not calibrated on this GPU but on a sibling, so the interval is wider",
    }.get(calibration["status"], "outside what the calibration has seen")
    if calibration["variance_factor"] > 1.0:
        factor = f"{calibration['variance_factor']:g}"
        lead += f"; the interval's variance is multiplied by {factor}, by convention and not by measurement"
    return lead


def _time_rows(result: SimulationResult, figures: dict[str, float]) -> tuple[tuple[str, str, str], ...]:
    def both(name: str, unit) -> str:
        return f"{unit(figures[f'{name}_p50'])} / {unit(figures[f'{name}_p90'])}"

    def interval(name: str, kind: str, unit, label: str = "90 % interval") -> str:
        return f"{label} {units.span(*result.interval(figures[name], kind), unit)}"

    rate = figures["output_tok_per_s"]
    of_p50 = "90 % interval of p50"
    ttft = interval("ttft_s_p50", "ttft", units.seconds, of_p50)
    tpot = interval("tpot_s_p50", "tpot", units.milliseconds, of_p50)
    rows = (
        ("Wall time p50", units.seconds(figures["wall_s_p50"]), interval("wall_s_p50", "time", units.seconds)),
        ("Wall time p90", units.seconds(figures["wall_s_p90"]), interval("wall_s_p90", "time", units.seconds)),
        ("TTFT of the calls p50 / p90", both("ttft_s", units.seconds), f"{ttft}; queueing included"),
        ("TPOT of the calls p50 / p90", both("tpot_s", units.milliseconds), f"{tpot}; after the first token"),
        ("Output rate", f"{units.significant(rate)} tok/s", "all calls together, over the wall time"),
    )
    if "question_s_p50" in figures:
        of_questions = " / ".join(units.seconds(figures[f"question_s_p{q}"]) for q in (50, 90, 99))
        rate = f"{units.significant(3600.0 * figures['questions_per_s'])} per hour"
        rows += (
            ("Question p50 / p90 / p99", of_questions, "from the start of work on a question to its answer"),
            ("Questions answered", rate, "over the wall time of the whole set"),
        )
    if "wait_s_p50" in figures:
        rows += (("External waits p50", units.seconds(figures["wait_s_p50"]), "all together; they occupy no GPU"),)
    return rows


def _token_rows(figures: dict[str, float]) -> tuple[tuple[str, str, str], ...]:
    def row(title: str, name: str, remark: str) -> tuple[str, str, str]:
        return title, units.tokens(figures[f"{name}_p50"]), remark

    cached = figures["read_tok_p50"] - figures["computed_tok_p50"]
    return (
        row("Critical path", "critical_path_tok", "output tokens on the longest chain of dependent calls"),
        row("Total written", "written_tok", "output tokens of all calls"),
        row("Total read", "read_tok", f"prompts of all calls; {units.tokens(cached)} of it from the prefix cache"),
        row("Re-read", "reread_tok", "of it read or written by an earlier call, cache hits included"),
        row("B_seq", "b_seq_tok", "input + output of the calls on the accepted path"),
        row("B_total", "b_total_tok", "input + output of all calls"),
    )


def _resource_rows(result: SimulationResult, figures: dict[str, float]) -> tuple[tuple[str, str, str], ...]:
    memory = result.memory
    peak = figures["peak_memory_byte"]
    other = memory["activation_byte"] + memory["overhead_byte"]
    roles = memory.get("roles_byte", 0.0)
    kv = max(0.0, peak - memory["weights_byte"] - other - roles)
    kv = 0.0 if kv < 1.0 else kv  # less than a byte is rounding
    sizes = [("weights", memory["weights_byte"]), ("KV", kv), ("other", other)]
    if roles:
        sizes.append(("models of roles", roles))
    parts = " + ".join(f"{name} {units.gigabytes(size)}" for name, size in sizes)
    energy = units.span(figures["energy_j_lo"], figures["energy_j_hi"], units.joules)
    whole = f"{units.gigabytes(peak)} of {units.gigabytes(memory['capacity_byte'])}"
    used = f"{units.watt_hours(figures['energy_j_p50'])}; 90 % interval {energy}"
    return (
        ("Peak memory", whole, parts),
        ("Peak sequences", f"{result.values('peak_running').max():.0f}", "most in one engine step"),
        ("Average power", units.watts(figures["mean_power_w"]), power_remark(result)),
        ("Energy p50", units.joules(figures["energy_j_p50"]), used),
        ("Energy per output token", units.joules(figures["energy_j_per_output_tok"]), ""),
        ("Cost p50", units.dollars(figures["cost_usd_p50"]), str(result.price.get("basis", ""))),
    )


def _idealized_sections(result: SimulationResult) -> tuple[Section, ...]:
    """What the calls would take alone on the hardware; nothing where nobody asked."""
    found = result.idealized
    if not found:
        return ()
    profile = (
        f"F(512) = {units.milliseconds(found['prompt_512_tok_s'])}, g = {units.milliseconds(found['output_tok_s'])}"
    )
    rows = (
        ("Critical path p50", units.seconds(found["critical_path_s_p50"]), f"F(p) + g (o - 1) per call; {profile}"),
        ("All calls p50", units.seconds(found["all_calls_s_p50"]), "as if one after the other"),
        ("Cost-aware p50", units.seconds(found["accelerator_s_p50"]), "all calls x accelerators"),
    )
    return (Section("Idealized runtime (arXiv:2305.02440)", rows),)


def _engine_sections(result: SimulationResult) -> tuple[Section, ...]:
    """What each of several engines did; nothing where there is only one."""
    if not result.flights[0].engines:
        return ()
    rows = []
    for uses in zip(*(flight.engines for flight in result.flights)):
        busy = np.median([use.busy_s / flight.wall_s for use, flight in zip(uses, result.flights)])
        calls, written = (np.median([getattr(use, name) for use in uses]) for name in ("calls", "written_tok"))
        computed, peak = (np.median([getattr(use, name) for use in uses]) for name in ("computed_tok", "peak_running"))
        work = f"{calls:,.0f} calls, {units.tokens(computed)} prefilled, {units.tokens(written)} written"
        rows.append((uses[0].engine, f"{100 * busy:.0f} % busy", f"{work}; at most {peak:.0f} sequences in a step"))
    return (Section("Engines (medians)", tuple(rows)),)


def power_remark(result: SimulationResult | TrafficResult) -> str:
    """Between which levels the power lies, and whose power it is."""
    power, scope = result.power, result.calibration.get("power_scope", "board")
    levels = f"idle {units.watts(power['idle_w'])}, limit {units.watts(power['limit_w'])}" if power else ""
    if scope != "board":  # the limit is the module's, the rest is what the calibration measured
        what = {"gpu_soc_rail": "GPU and SoC rail"}.get(scope, scope.replace("_", " "))
        levels += f"; power and energy of the {what}, not of the whole board"
    return levels


def _call_rows(result: SimulationResult) -> tuple[tuple[str, ...], ...]:
    """One row per label, in order of first appearance."""
    by_label: dict[str, list[CallRecord]] = {}
    for flight in result.flights:
        for call in flight.calls:
            elsewhere = f" on {call.engine}" if call.engine and not call.engine.startswith("main") else ""
            by_label.setdefault(call.label + elsewhere, []).append(call)
    return tuple(_call_row(label, calls, len(result.flights)) for label, calls in by_label.items())


def _call_row(label: str, calls: list[CallRecord], repetitions: int) -> tuple[str, ...]:
    def median(values) -> float:
        found = [value for value in values if value is not None]
        return float(np.median(found)) if found else float("nan")

    count, stopped = len(calls) / repetitions, sum(call.stopped for call in calls) / repetitions
    name = f"{label} x{count:.0f}" if count == round(count) else f"{label} x{count:.1f}"
    return (
        f"{name}, {stopped:.3g} stopped" if stopped else name,
        f"{median(call.prompt_tok for call in calls):,.0f}",
        f"{median(call.cached_tok for call in calls):,.0f}",
        f"{median(call.output_tok for call in calls):,.0f}",
        units.seconds(median(call.scheduled_s - call.submitted_s for call in calls)),
        units.seconds(median(call.ttft_s for call in calls)),
        units.milliseconds(median(call.tpot_s for call in calls)),
        units.seconds(median(call.finished_s - call.submitted_s for call in calls)),
    )


def calibration_rows(result: SimulationResult | TrafficResult, time: str = "wall time") -> tuple[str, ...]:
    """What the intervals rest on; `time`: what this kind of result calls its time."""
    calibration = result.calibration
    kinds = ((time, "time"), ("TTFT", "ttft"), ("TPOT", "tpot"), ("energy", "energy"))
    wide = [f"{name} by {result.interval(1.0, kind)[1]:.2f}" for name, kind in kinds]
    rows = [
        f"{calibration['id']}: {_calibration_title(calibration)}",
        f"90 % interval: divide and multiply {', '.join(wide)}",
        f"source: {calibration['source']}",
    ]
    if calibration.get("data_hash"):
        rows.append(f"fitted on data with SHA-256 {calibration['data_hash'][:16]}")
    return (*rows, *calibration.get("notes", ()))


def _calibration_title(calibration: dict[str, Any]) -> str:
    """The title with the engine, without the '?' of measured runs that state no version of the engine."""
    title, engine = calibration["title"].removesuffix(" ?").removesuffix(","), calibration["engine"]
    return title if engine in title else f"{title} (engine {engine})"
