"""What `validate simulator` prints: a line per law, what is broken, what does not fit; or one JSON object."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from simulator.report.plain import columns
from simulator.report.units import significant
from simulator.workload.traffic import counted
from validate.laws.known import why_broken
from validate.laws.law import Law, Result
from validate.laws.suite import FAMILIES, LAWS, Held, Report
from validate.published.report import percent

EXACT = 1e-6  # margins of laws with a smaller tolerance are not worth a number
MOST_BROKEN = 8  # lines per law
IN_FULL = 3  # up to so many deployments every value is shown


@dataclass(frozen=True)
class Line:
    """One law over all deployments that it was held against."""

    law: Law
    held: int
    broken: int
    closest: tuple[Held, Result] | None  # where it comes closest to being broken, or is broken worst


def lines(report: Report) -> list[Line]:
    """One per law, in the order of their numbers."""
    found: dict[str, list[tuple[Held, Result]]] = {number: [] for number in LAWS}
    for one in report.held:
        for result in one.results:
            found[result.law].append((one, result))
    return [_line(LAWS[number], pairs) for number, pairs in found.items()]


def _line(law: Law, pairs: list[tuple[Held, Result]]) -> Line:
    held = sum(result.holds for _, result in pairs)
    closest = min(pairs, key=lambda pair: _margin(pair[1]), default=None)
    return Line(law, held, len(pairs) - held, closest)


def _margin(result: Result) -> float:
    return -math.inf if math.isnan(result.margin) else result.margin


def margin(law: Law, result: Result) -> str:
    """'+12.3 %'; 'exact' where the law knows no tolerance and nothing is to spare."""
    if math.isnan(result.margin):
        return "not a number"
    if law.tolerance <= EXACT and 0.0 <= result.margin <= law.tolerance:
        return "exact"
    return percent(result.margin, signed=True)


def comparison(result: Result, unit: str) -> str:
    """'0.123 >= 0.1 s'."""
    return f"{significant(result.value, 4)} {result.sense} {significant(result.bound, 4)} {unit}".rstrip()


def deployment(one: Held) -> str:
    """'h100-sxm llama-3.3-70b tp 4'."""
    return f"{one.gpu} {one.label}" + (f" tp {one.tp}" if one.tp > 1 else "")


def text(report: Report) -> str:
    """Tables for a terminal."""
    found = lines(report)
    out: list[str] = []
    for family in FAMILIES:
        numbers = {law.number for law in family.FAMILY.laws}
        rows = [_row(line) for line in found if line.law.number in numbers]
        out += [family.FAMILY.title, *(f"  {row}" for row in columns([HEAD, *rows], right=(2, 3, 4))), ""]
    if len(report.held) <= IN_FULL:
        for one in report.held:
            out += [deployment(one), *(f"  {row}" for row in columns(list(map(_full, one.results)), right=(2,))), ""]
    out += broken(report)
    out += misfits(report)
    return "\n".join([*out, headline(report)])


HEAD = ("law", "", "held", "broken", "margin", "closest at")


def _row(line: Line) -> tuple[str, ...]:
    if line.closest is None:
        return (line.law.number, line.law.name, "0", "0", "–", "nothing to compare")
    one, result = line.closest
    where = deployment(one) + (f", {result.where}" if result.where else "")
    near = margin(line.law, result)
    return (line.law.number, line.law.name, str(line.held), str(line.broken), near, "" if near == "exact" else where)


def _full(result: Result) -> tuple[str, ...]:
    law = LAWS[result.law]
    verdict = "" if result.holds else "BROKEN"
    return (law.number, law.name, comparison(result, law.unit), margin(law, result), result.where, verdict)


def broken(report: Report) -> list[str]:
    """Every broken law with the worst deployments, and why if that is known."""
    out: list[str] = []
    for number, law in LAWS.items():
        found = [(one, result) for one, result in report.broken() if result.law == number]
        if not found:
            continue
        found.sort(key=lambda pair: _margin(pair[1]))
        out += [f"BROKEN {number} {law.name}: {law.statement} {law.formula}"]
        rows = [(deployment(one), comparison(r, law.unit), margin(law, r), r.where) for one, r in found[:MOST_BROKEN]]
        out += [f"  {row}" for row in columns(rows, right=(2,))]
        if len(found) > MOST_BROKEN:
            out += [f"  and {len(found) - MOST_BROKEN} more"]
        for why, count in known(found).items():
            out += [f"  {count} of {len(found)}: {why}"]
        out += [""]
    return out


def known(found: Iterable[tuple[Held, Result]]) -> Counter[str]:
    """How many of these breaks have which known cause."""
    causes = Counter(why_broken(result.law, one.gpu) for one, result in found)
    causes.pop("", None)
    return causes


def misfits(report: Report) -> list[str]:
    """How many combinations no law was held against, by reason."""
    if not report.misfits:
        return []
    rows = [(misfit.gpu, misfit.label, misfit.reason) for misfit in report.misfits]
    if len(rows) <= MOST_BROKEN:
        return ["Do not fit", *(f"  {row}" for row in columns(rows)), ""]
    by_model = Counter(misfit.label for misfit in report.misfits)
    counted = ", ".join(f"{label} on {count}" for label, count in by_model.items())
    return [f"Do not fit on as many devices as a node has (reasons: --json): {counted} GPUs", ""]


def headline(report: Report) -> str:
    """The verdict in one sentence."""
    count, kept = _counts(report), "all hold"
    if count["broken"]:
        kept = f"{count['broken']} of {count['results']:,} are broken, {count['known']} of them for a known reason"
    gpus = counted(len({one.gpu for one in report.held}), "GPU")
    left_out = counted(count["misfits"], "combination")
    return f"{len(LAWS)} laws, {counted(count['deployments'], 'deployment')} on {gpus} ({left_out} left out): {kept}"


def _counts(report: Report) -> dict[str, int]:
    bad = report.broken()
    return {
        "deployments": len(report.held),
        "misfits": len(report.misfits),
        "results": sum(len(one.results) for one in report.held),
        "broken": len(bad),
        "known": sum(known(bad).values()),
    }


def to_json(report: Report) -> dict[str, Any]:
    """Everything, as plain types; what is no number is null."""
    return {
        "laws": [asdict(line.law) | {"held": line.held, "broken": line.broken} for line in lines(report)],
        "deployments": [
            {"gpu": one.gpu, "model": one.label, "tp": one.tp, "results": [_result_json(one, r) for r in one.results]}
            for one in report.held
        ],
        "misfits": [asdict(misfit) for misfit in report.misfits],
        "summary": _counts(report),
    }


def _result_json(one: Held, result: Result) -> dict[str, Any]:
    numbers = {name: _finite(getattr(result, name)) for name in ("value", "bound", "margin")}
    out = {"law": result.law, **numbers, "sense": result.sense, "holds": result.holds, "where": result.where}
    return out if result.holds else out | {"known": why_broken(result.law, one.gpu)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
