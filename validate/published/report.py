"""What `validate strategies` prints: one table per paper, the sums, or the same as one JSON object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simulator.report.plain import columns
from simulator.report.units import significant
from validate.published import Paper
from validate.published.comparison import Comparison

SIGNS = {"equals": "", "at most": "≤ ", "at least": "≥ "}
NONE = "–"
SCALES = ((1e9, " G"), (1e6, " M"))
HEAD = ("quantity", "unit", "published", "simulated", "error", "tolerance", "verdict")


@dataclass(frozen=True)
class Errors:
    """Statistics of simulated / published - 1, as fractions. Bounds have none: far below a limit is not wrong."""

    n: int
    bias: float  # mean
    median: float  # of the size, as is p90
    p90: float


def errors(comparisons: Iterable[Comparison]) -> Errors | None:
    """Statistics of those that give a value; None if none does."""
    found = np.array([c.error for c in comparisons if c.relation == "equals" and c.error is not None])
    if not len(found):
        return None
    size = np.abs(found)
    return Errors(len(found), float(found.mean()), float(np.median(size)), float(np.percentile(size, 90)))


def asserted(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those that are judged."""
    return [c for c in comparisons if c.asserted]


def every(papers: Iterable[Paper]) -> list[Comparison]:
    """The comparisons of all papers."""
    return [c for paper in papers for c in paper.comparisons]


def missed(papers: Iterable[Paper]) -> list[Comparison]:
    """The asserted ones that are not met."""
    return [c for c in every(papers) if c.met is False]


def figure(value: float | None, digits: int = 4) -> str:
    """A number of any unit with that many significant digits at most; millions and more as '362 M'."""
    if value is None:
        return NONE
    scale, letter = next((step for step in SCALES if abs(value) >= step[0]), (1.0, ""))
    found = significant(value / scale, digits)
    return (found.rstrip("0").rstrip(".") if "." in found and "e" not in found else found) + letter


def percent(fraction: float | None, signed: bool = False) -> str:
    """'+3.1 %', or a dash."""
    if fraction is None:
        return NONE
    rounded = round(100.0 * fraction, 1) or 0.0  # no -0.0
    return f"{rounded:{'+' if signed and rounded else ''}.1f} %"


def tolerance(comparison: Comparison) -> str:
    """'10 %', or a dash where nothing is asserted."""
    return f"{figure(100.0 * comparison.tolerance)} %" if comparison.asserted else NONE


def published(comparison: Comparison) -> str:
    """The published figure, with the sign of a bound."""
    return SIGNS[comparison.relation] + figure(comparison.published, digits=5)


def error(c: Comparison) -> str:
    """'+3.1 %'; 'within' on the right side of a bound."""
    if c.error is None:
        return NONE
    inside = {"equals": False, "at most": c.error <= 0, "at least": c.error >= 0}[c.relation]
    return "within" if inside else percent(c.error, signed=True)


def cells(c: Comparison) -> tuple[str, ...]:
    """One row under HEAD."""
    return (c.quantity, c.unit, published(c), figure(c.simulated), error(c), tolerance(c), c.verdict)


def counts(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """How many there are of each verdict."""
    verdicts = [c.verdict for c in comparisons]
    return {name: verdicts.count(name) for name in ("met", "missed", "reported", "not reproduced")}


def text(papers: Sequence[Paper]) -> str:
    """Tables for a terminal: cells aligned over all papers, then the sums."""
    lines = []
    grid = columns([HEAD, *(cells(c) for c in every(papers))], right=(2, 3, 4, 5))
    head, rows = grid[0], iter(grid[1:])
    for paper in papers:
        lines += [f"{paper.name}: {paper.title}", f"  {head}"]
        lines += [f"  {next(rows)}" for _ in paper.comparisons]
        lines += [""]
    lines += [
        "error = simulated / published - 1; bias is its mean, median and p90 are of its size; bounds are not in them"
    ]
    lines += columns(
        [_SUMS, *(row for paper in papers for row in _sums(paper.name, paper.comparisons))], right=range(2, 6)
    )
    return "\n".join([*lines, "", sentence(every(papers))])


_SUMS = ("paper", "figures", "n", "bias", "median", "p90")


def _sums(name: str, comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Rows under _SUMS: asserted figures, then those only reported."""
    rows = []
    for label, group in (("asserted", asserted(comparisons)), ("reported", [c for c in comparisons if not c.asserted])):
        found = errors(group)
        if found is not None:
            statistics = (percent(found.bias, signed=True), percent(found.median), percent(found.p90))
            rows.append((name, label, str(found.n), *statistics))
    return rows


def sentence(comparisons: Sequence[Comparison]) -> str:
    """'12 figures asserted: 11 met, 1 missed; median error 3.1 %; 4 reported, 2 not reproduced'."""
    found = counts(comparisons)
    judged = asserted(comparisons)
    middle = errors(judged)
    typical = f"; median error {percent(middle.median)}" if middle else ""
    rest = f"{found['reported']} reported, {found['not reproduced']} not reproduced"
    return f"{len(judged)} figures asserted: {found['met']} met, {found['missed']} missed{typical}; {rest}"


def to_json(papers: Sequence[Paper]) -> dict[str, Any]:
    """Everything, as plain types."""
    return {
        "papers": [
            {
                "name": paper.name,
                "title": paper.title,
                "about": paper.about,
                **_sums_json(paper.comparisons),
                "comparisons": [_comparison_json(c) for c in paper.comparisons],
            }
            for paper in papers
        ],
        "summary": _sums_json(every(papers)),
    }


def _comparison_json(c: Comparison) -> dict[str, Any]:
    return {**asdict(c), "assumed": list(c.assumed), "error": c.error, "asserted": c.asserted, "verdict": c.verdict}


def _sums_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    judged = errors(asserted(comparisons))
    shown = errors(c for c in comparisons if not c.asserted)
    return {
        "asserted": len(asserted(comparisons)),
        **{name.replace(" ", "_"): count for name, count in counts(comparisons).items()},
        "errors_of_asserted": asdict(judged) if judged else None,
        "errors_of_reported": asdict(shown) if shown else None,
    }
