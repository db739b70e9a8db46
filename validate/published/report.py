"""What `validate strategies` prints: one table per paper, the sums, or the same as one JSON object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simulator.report.plain import columns
from simulator.report.units import significant
from validate.published import Paper
from validate.published.comparison import EXPLAINED, KINDS, MISSED, VERDICTS, Comparison

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


def judged(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those with a target, met and missed alike."""
    return [c for c in comparisons if c.judged]


def by_kind(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Those of each kind that occurs, in the order of KINDS. Errors of different kinds are never put together."""
    found = {kind: [c for c in comparisons if c.kind == kind] for kind in KINDS}
    return {kind: group for kind, group in found.items() if group}


def every(papers: Iterable[Paper]) -> list[Comparison]:
    """The comparisons of all papers."""
    return [c for paper in papers for c in paper.comparisons]


def missed(papers: Iterable[Paper]) -> list[Comparison]:
    """Those outside their tolerance without an explanation."""
    return [c for c in every(papers) if c.verdict == MISSED]


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
    """'10 %', or a dash where there is no target."""
    return NONE if comparison.tolerance is None else f"{figure(100.0 * comparison.tolerance)} %"


def published(comparison: Comparison) -> str:
    """The published figure, with the sign of a bound."""
    return SIGNS[comparison.relation] + figure(comparison.published, digits=5)


def simulated(c: Comparison) -> str:
    """The simulated figure; one that is drawn with two digits and its standard error: '23 ± 2'."""
    if c.spread is None:
        return figure(c.simulated)
    return f"{figure(c.simulated, digits=2)} ± {figure(c.spread, digits=1)}"


def error(c: Comparison) -> str:
    """'+3.1 %'; 'within' on the right side of a bound."""
    if c.error is None:
        return NONE
    inside = {"equals": False, "at most": c.error <= 0, "at least": c.error >= 0}[c.relation]
    return "within" if inside else percent(c.error, signed=True)


def cells(c: Comparison) -> tuple[str, ...]:
    """One row under HEAD."""
    return (c.quantity, c.unit, published(c), simulated(c), error(c), tolerance(c), c.verdict)


def counts(comparisons: Iterable[Comparison]) -> dict[str, int]:
    """How many there are of each verdict."""
    verdicts = [c.verdict for c in comparisons]
    return {name: verdicts.count(name) for name in VERDICTS}


def text(papers: Sequence[Paper]) -> str:
    """Tables for a terminal: cells aligned over all papers, then the sums."""
    lines = []
    grid = columns([HEAD, *(cells(c) for c in every(papers))], right=(2, 3, 4, 5))
    head, rows = grid[0], iter(grid[1:])
    for paper in papers:
        lines += [f"{paper.name}: {paper.title}", f"  {head}"]
        lines += [f"  {next(rows)}" for _ in paper.comparisons]
        lines += [""]
    lines += [STATISTICS]
    sums = [(paper.name, *sums_row(*found)) for paper in papers for found in by_kind(paper.comparisons).items()]
    whole = [("all", *sums_row(*found)) for found in by_kind(every(papers)).items()]
    lines += columns([("paper", *SUMS), *sums, *whole], right=range(2, 10))
    return "\n".join([*lines, "", *headlines(every(papers))])


SUMS = ("kind", "met", EXPLAINED, MISSED, "reported", "not reproduced", "bias", "median", "p90")
STATISTICS = (
    "error = simulated / published - 1; bias is its mean, median and p90 are of its size, over all figures with a "
    "target, met and missed; bounds are in none"
)


def sums_row(kind: str, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """One row under SUMS: figures of one kind."""
    return (kind, *(str(count) if count else NONE for count in counts(comparisons).values()), *statistics(comparisons))


def statistics(comparisons: Iterable[Comparison]) -> tuple[str, str, str]:
    """Bias, median and p90 of those with a target, or dashes."""
    found = errors(judged(comparisons))
    if found is None:
        return (NONE, NONE, NONE)
    return (percent(found.bias, signed=True), percent(found.median), percent(found.p90))


def headlines(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence per kind of figure, and one about those that have no target."""
    lines = [_headline(kind, judged(group)) for kind, group in by_kind(comparisons).items() if judged(group)]
    found = counts(comparisons)
    named = {"reported": "reported without a verdict", "not reproduced": "not reproduced"}
    rest = ", ".join(f"{found[name]} {words}" for name, words in named.items() if found[name])
    if not lines:
        return [f"no figure with a target; {rest}" if rest else "no figure with a target"]
    return [*lines, rest] if rest else lines


def _headline(kind: str, group: Sequence[Comparison]) -> str:
    """'prediction: 12 figures with a target: 9 met, 3 missed (explained); bias +1.0 %, median error 3.1 %, ...'."""
    found = counts(group)
    verdicts = f"{found['met']} met, {found[EXPLAINED]} {EXPLAINED}"
    if found[MISSED]:
        verdicts += f", {found[MISSED]} {MISSED}"
    bias, median, p90 = statistics(group)
    typical = f"; bias {bias}, median error {median}, p90 {p90}" if median != NONE else ""
    return f"{kind}: {len(group)} figure{'s' * (len(group) != 1)} with a target: {verdicts}{typical}"


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
    return {**asdict(c), "assumed": list(c.assumed), "error": c.error, "judged": c.judged, "verdict": c.verdict}


def _sums_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Counts of verdicts; and for each kind counts, and errors of those with a target."""
    kinds = {}
    for kind, group in by_kind(comparisons).items():
        found = errors(judged(group))
        kinds[kind] = {**_counts_json(group), "errors": asdict(found) if found else None}
    return {**_counts_json(comparisons), "kinds": kinds}


def _counts_json(comparisons: Sequence[Comparison]) -> dict[str, int]:
    named = {re.sub(r"\W+", "_", name).strip("_"): count for name, count in counts(comparisons).items()}
    return {"judged": len(judged(comparisons)), **named}
