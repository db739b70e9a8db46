"""A comparison as text: the candidates, their differences, the Pareto front, and the best within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from simulator.planning.compare import AccuracyGap, Comparison, Entry
from simulator.planning.differences import Difference
from simulator.planning.within import SHORT
from simulator.report import units
from simulator.report.plain import columns

TITLES = {
    "wall_s_p50": "wall p50",
    "wall_s_p90": "wall p90",
    "energy_j_p50": "energy p50",
    "cost_usd_p50": "cost p50",
    "peak_memory_byte": "peak memory",
    "written_tok_p50": "written p50",
    "accuracy": "accuracy",
}
FORMATS: dict[str, Callable[[float], str]] = {
    "wall_s": units.seconds,
    "ttft_s": units.seconds,
    "tpot_s": units.milliseconds,
    "energy_j": units.joules,
    "cost_usd": units.dollars,
    "peak_memory_byte": units.gigabytes,
    "mean_power_w": units.watts,
    "accuracy": units.percent,
}
WORDS = {"wall_s_p50": "latency", "energy_j_p50": "energy", "cost_usd_p50": "cost", "peak_memory_byte": "memory"}


def figure_text(figure: str, value: float) -> str:
    """A value with its unit."""
    kind = next((kind for kind in FORMATS if figure.startswith(kind)), None)
    return FORMATS[kind](value) if kind is not None else units.tokens(value)


def render_comparison(comparison: Comparison) -> str:
    """The whole report, ending in a newline."""
    parts = [
        [headline(comparison)],
        ["Candidates (below each figure its 90 % interval)", *_indent(_candidates(comparison))],
        *_differences(comparison),
        [_front_title(comparison), *_indent(front_lines(comparison))],
        *_accuracies(comparison),
        *_remarks(comparison),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def headline(comparison: Comparison) -> str:
    """What is best within the limits; without limits, who is on the front."""
    choice = comparison.choice
    if choice is None:
        verb = "is" if len(comparison.front) == 1 else "are"
        return f"{_listed(comparison.front)} {verb} not beaten in everything by any other."
    limits = " and ".join(limit_text(limit.figure, limit.value) for limit in comparison.study.within)
    within = f" within {limits}" if limits else ""
    wanted = TITLES.get(choice.wanted, choice.wanted)
    if choice.best is not None:
        value = comparison.of(choice.best).figures()[choice.wanted]
        among = f"{len(choice.feasible)} of {len(comparison.flown)} candidates keep the limits"
        same = f"; no difference to {_listed(comparison.as_good)}" if comparison.as_good else ""
        edge = "".join(f" {text}" for text in _beyond(comparison))
        return f"Best {wanted}{within}: {choice.best}, {figure_text(choice.wanted, value)} ({among}{same}).{edge}"
    if choice.feasible:
        return f"Best {wanted}{within}: not known, because no {wanted} is known of {_listed(choice.feasible)}."
    missing = [
        f"{TITLES.get(figure, figure)} is {figure_text(figure, found)}, {_off(found, limit)} the limit"
        for figure, found, limit in choice.missing
    ]
    needed = " ".join(
        f"--within {_short(figure)}={units.significant(found * (0.9995 if figure == 'accuracy' else 1.0005), 4)}"
        for figure, found, _ in choice.missing
    ).replace(",", "")
    return f"Nothing keeps {limits}. Nearest: {choice.nearest} ({'; '.join(missing)}). It would do with {needed}."


def limit_text(figure: str, value: float) -> str:
    """'wall p50 <= 10.0 s'."""
    sign = ">=" if figure == "accuracy" else "<="
    return f"{TITLES.get(figure, figure)} {sign} {figure_text(figure, value)}"


def _short(figure: str) -> str:
    return next((short for short, name in SHORT.items() if name == figure), figure)


def _off(found: float, limit: float) -> str:
    return f"{units.significant(found / limit)}x" if math.isfinite(found) else "not known, against"


def _beyond(comparison: Comparison) -> list[str]:
    """Which limits the best one keeps by its middle value and not with the whole of its interval."""
    best = comparison.of(comparison.choice.best)
    found = []
    for limit in comparison.study.within:
        high = best.outcome.intervals.get(limit.figure, (0.0, 0.0))[1]
        if high > limit.value:
            high_text = figure_text(limit.figure, high)
            found.append(f"Its {TITLES.get(limit.figure, limit.figure)} may reach {high_text}: beyond the limit.")
    return found


def _candidates(comparison: Comparison) -> list[str]:
    known = [figure for figure in TITLES if any(figure in entry.figures() for entry in comparison.flown)]
    rows = [("candidate", *(TITLES[figure] for figure in known))]
    for entry in comparison.entries:
        if not entry.outcome.ok:
            rows.append((entry.name, "failed", *[""] * (len(known) - 1)))
            continue
        figures = entry.figures()
        rows.append((entry.name, *(figure_text(f, figures[f]) if f in figures else "-" for f in known)))
        rows.append(("", *(_interval(entry, figure) for figure in known)))
    lines = columns(rows, right=range(1, len(known) + 1))
    return [*lines, *(f"{e.name}: {e.outcome.reason}" for e in comparison.entries if not e.outcome.ok)]


def _interval(entry: Entry, figure: str) -> str:
    if figure == "accuracy":
        found = entry.accuracy
        exact = found is None or found.low == found.high
        return "" if exact else f"{100.0 * found.low:.1f} - {units.percent(found.high)}"
    ends = entry.outcome.intervals.get(figure)
    if ends is None or ends[0] != ends[0]:
        return ""
    kind = next(kind for kind in FORMATS if figure.startswith(kind))
    return units.span(*ends, FORMATS[kind])


# -- differences ---------------------------------------------------------------------------------------------------


def _differences(comparison: Comparison) -> list[list[str]]:
    figures = list(dict.fromkeys(each.figure for each in comparison.differences))
    if not figures:
        return []
    found = {(each.candidate, each.figure): ratio_text(each) for each in comparison.differences}
    gaps = {gap.candidate: gap_text(gap) for gap in comparison.accuracy_gaps}
    head = ("candidate", *(TITLES[figure] for figure in figures), *(["accuracy"] if gaps else []))
    rows = [
        (
            entry.name,
            *(found.get((entry.name, f), "-") for f in figures),
            *([gaps.get(entry.name, "-")] if gaps else []),
        )
        for entry in comparison.flown
        if entry.name != comparison.study.against
    ]
    paired = all(each.paired for each in comparison.differences)
    how = "repetitions in pairs, calibration" if paired else "repetitions, not all of them in pairs; calibration"
    title = f"Compared with {comparison.study.against} (ratio and its 90 % interval: {how})"
    return [[title, *_indent(columns([head, *rows]))]]


def ratio_text(each: Difference) -> str:
    """'1.23x (1.10 - 1.38)', or 'no difference (0.95 - 1.08)'."""
    if each.low == each.high:
        return "the same" if each.verdict == "none" else f"{units.significant(each.ratio)}x"
    lead = "no difference" if each.verdict == "none" else f"{units.significant(each.ratio)}x"
    return f"{lead} ({units.significant(each.low)} - {units.significant(each.high)})"


def gap_text(gap: AccuracyGap) -> str:
    """'+4.1 points (+1.0 - +7.2)', or 'no difference (...)'."""
    if gap.low == gap.high:
        return "the same" if gap.verdict == "none" else f"{100.0 * gap.gap:+.1f} points"
    lead = "no difference" if gap.verdict == "none" else f"{100.0 * gap.gap:+.1f} points"
    return f"{lead} ({100.0 * gap.low:+.1f} - {100.0 * gap.high:+.1f})"


# -- front and remarks ---------------------------------------------------------------------------------------------


def _front_title(comparison: Comparison) -> str:
    return f"Pareto front ({' x '.join(WORDS.get(figure, figure) for figure in comparison.objectives)})"


def front_lines(comparison: Comparison) -> list[str]:
    """Who is on it, and who beats the others."""
    rows = []
    for name, by in comparison.dominated_by.items():
        sure = name in comparison.clearly_dominated
        told = f"dominated by {', '.join(by)}" + ("" if sure else ", by less than the intervals")
        rows.append((name, told if by else "on the front"))
    unjudged = [entry.name for entry in comparison.flown if entry.name not in comparison.dominated_by]
    return columns([*rows, *((name, "not judged: its accuracy is not known") for name in unjudged)])


def _accuracies(comparison: Comparison) -> list[list[str]]:
    rows = [(entry.name, entry.basis) for entry in comparison.flown if entry.basis]
    return [["Accuracy", *_indent(columns(rows))]] if rows else []


def _remarks(comparison: Comparison) -> list[list[str]]:
    flown = comparison.flown
    models = {entry.name: entry.outcome.facts["model"] for entry in flown}
    notes = list(comparison.notes)
    if len(set(models.values())) > 1:
        notes.append("different models: " + "; ".join(f"{name}: {model}" for name, model in models.items()))
    else:
        notes.append(f"model: {flown[0].outcome.facts['model']}")
    rests: dict[str, list[str]] = {}
    for entry in flown:
        for warning in entry.outcome.facts["calibration"]["extrapolated"]:
            rests.setdefault(f"{entry.outcome.calibration}: {warning}", []).append(entry.name)
    warnings = [f"{text} ({'all' if len(names) == len(flown) else ', '.join(names)})" for text, names in rests.items()]
    found = [["Notes", *(f"  - {note}" for note in notes)]]
    if warnings:
        found.append(["Outside of what calibrations have seen: believe less", *(f"  - {each}" for each in warnings)])
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
