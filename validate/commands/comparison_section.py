"""The section of docs/strategies.md about one paper: its figures, what was flown, assumed, and out of reach."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from validate.commands.markdown import bullets, folded, paragraphs, prose, table
from validate.published import Paper
from validate.published.comparison import MISSED, Comparison
from validate.published.report import (
    NONE,
    SIGNS,
    counts,
    error,
    errors,
    figure,
    headlines,
    percent,
    published,
    simulated,
    tolerance,
)

MOST_ROWS = 12  # of a table that stands open; longer ones are summed up and folded
MOST_NOTES = 6  # of a list that stands open
MOST_VALUES = 8  # of remarks that differ in numbers only
MARKS = {"verbatim": "", "derived": " (d)", "secondary": " (s)"}
HEAD = ("#", "figure", "published", "simulated", "error", "tolerance", "verdict", "kind")
RIGHT = (2, 3, 4, 5)
_NUMBER = re.compile(r"(?<![A-Za-z\d.,])\d+(?:[.,]\d+)*")  # not the 24 of AIME24


def section(paper: Paper) -> str:
    """Everything about one paper, under a heading. Its figures are numbered, so that notes can point at them."""
    kinds = summed(paper.comparisons)
    rows = [comparison for kind in kinds.values() for comparison in kind]  # those of a kind side by side
    return paragraphs(
        (
            f"### {prose(paper.title)}",
            prose(paper.about),
            f"Compared: {_names_of_strategies(rows)}. To repeat: `validate strategies {paper.name}`.",
            bullets(headlines(paper.comparisons)),
            figures(rows, kinds),
            _within(rows),
            notes("Set-up", rows, lambda c: (c.setup,)),
            notes("Inputs and assumptions", rows, lambda c: c.assumed),
            notes("Why missed", rows, lambda c: (c.known_miss,)),
            notes("Why reported only, why not reproduced, and remarks", rows, lambda c: (c.reason,)),
            sources(rows),
        )
    )


def _names_of_strategies(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(c.strategy for c in comparisons))


def figures(rows: Sequence[Comparison], kinds: dict[tuple, list[Comparison]]) -> str:
    """The table, or its sums with the table folded below."""
    whole = table(HEAD, (row(number, c) for number, c in enumerate(rows, start=1)), right=RIGHT)
    if len(rows) <= MOST_ROWS:
        return whole
    sums, first = [], 1
    several = len({c.strategy for c in rows}) > 1
    for (words, strategy, *_), group in kinds.items():
        sums.append(_group_row(first, f"{prose(words)}, `{strategy}`" if several else prose(words), group))
        first += len(group)
    return paragraphs((table(HEAD, sums, right=RIGHT), folded(f"All {len(rows)} figures", whole)))


def row(number: int, c: Comparison) -> tuple[str, ...]:
    """One row under HEAD."""
    shown = f"{published(c)} {c.unit}{MARKS[c.status]}"
    return (str(number), prose(c.quantity), shown, simulated(c), *_judged(c))


def _judged(c: Comparison) -> tuple[str, str, str, str]:
    return (error(c), tolerance(c), _mark(c.verdict), c.kind)


def summed(comparisons: Sequence[Comparison]) -> dict[tuple, list[Comparison]]:
    """Figures of one kind together, so that there are at most MOST_ROWS kinds.

    A quantity is a list of parts ("latency, 1.6B, batch 1"). One after the other is left out, of all quantities with as
    many parts, so that only like is put to like: numbers before words, and of these the one with most values. What
    stands first goes last.
    """
    left_out: set[tuple[int, int]] = set()  # (number of parts, place of one)
    while True:
        kinds = _grouped(comparisons, lambda c: _kind(c, left_out))
        values = _grouped(_open_parts(comparisons, left_out), lambda found: found[:2])
        open_places = [place for place in values if _others(place, values)]
        if len(kinds) <= MOST_ROWS or not open_places:
            return kinds
        left_out.add(max(open_places, key=lambda place: _dispensable(place, values[place])))


def _open_parts(comparisons: Sequence[Comparison], left_out: set) -> list[tuple[int, int, str]]:
    """(number of parts, place, part) of every part that still tells figures apart."""
    found = [(c.quantity.split(", "), c) for c in comparisons]
    places = [(len(parts), place, part) for parts, _ in found for place, part in enumerate(parts)]
    return [part for part in places if part[:2] not in left_out]


def _dispensable(place: tuple[int, int], found: Sequence[tuple[int, int, str]]) -> tuple:
    """Greater for parts that can rather be left out."""
    values = {part for _, _, part in found}
    words = {_NUMBER.sub("#", value).removesuffix("s") for value in values}
    return (place[1] > 0, len(words) < len(values), len(values), place)


def _others(place: tuple[int, int], places: Iterable[tuple[int, int]]) -> bool:
    """Whether another part is left of those with as many parts."""
    return any(other != place and other[0] == place[0] for other in places)


def _kind(c: Comparison, left_out: set[tuple[int, int]]) -> tuple:
    """What figures have in common that stand on one line; first, in words, what they are, and of which strategy."""
    parts = c.quantity.split(", ")
    kept = [part for place, part in enumerate(parts) if (len(parts), place) not in left_out]
    return (", ".join(kept), c.strategy, len(parts), c.unit, c.tolerance, c.status, c.relation, c.kind, c.judged)


def _group_row(first: int, what: str, group: Sequence[Comparison]) -> tuple[str, ...]:
    """Figures of one kind, numbered from `first`, as one row: spans of their values, median and worst error."""
    if len(group) == 1:
        return row(first, group[0])
    one = group[0]
    shown = f"{SIGNS[one.relation]}{_span([c.published for c in group], 5)} {one.unit}{MARKS[one.status]}"
    flown = _span([c.simulated for c in group if c.simulated is not None], 4)
    title = f"{what} ({len(group)} figures)"
    numbers = _ranges(range(first, first + len(group)))
    return (numbers, title, shown, flown, _spread(group), tolerance(one), _verdicts(group), one.kind)


def _span(values: Sequence[float], digits: int) -> str:
    if not values:
        return NONE
    low, high = figure(min(values), digits), figure(max(values), digits)
    return low if low == high else f"{low} to {high}"


def _spread(group: Sequence[Comparison]) -> str:
    known = [c for c in group if c.error is not None]
    found = errors(known)
    if found is None:
        return NONE
    worst = max((c.error for c in known), key=abs)
    return f"median {percent(found.median)}, worst {percent(worst, signed=True)}"


def _verdicts(group: Sequence[Comparison]) -> str:
    found = {name: count for name, count in counts(group).items() if count}
    if len(found) == 1:
        return f"all {_mark(next(iter(found)))}"
    return ", ".join(_mark(name, f"{count} ") for name, count in found.items())


def _mark(verdict: str, count: str = "") -> str:
    """A verdict; missed ones in bold."""
    return f"{count}{verdict}" if not verdict.startswith(MISSED) else verdict.replace(MISSED, f"**{count}{MISSED}**")


def _within(rows: Sequence[Comparison]) -> str:
    """How many figures that are not judged lie within the target all the same, quantity by quantity."""
    shown = [c for c in rows if not c.judged and c.within is not None]
    if not shown:
        return ""
    groups = _grouped(shown, lambda c: c.quantity.split(", ")[-1])
    parts = [f"{sum(c.within for c in group)} of {len(group)} ({prose(name)})" for name, group in groups.items()]
    return f"Within the target of {tolerance(shown[0])}, though not judged: {'; '.join(parts)}."


def notes(title: str, rows: Sequence[Comparison], of: Callable[[Comparison], Iterable[str]]) -> str:
    """A list of remarks with the numbers of the figures that they are about, unless they are about all of them.

    Remarks that differ in numbers only are one, with all the numbers in it. A list that is long is folded; one that is
    cut stands open, and whole in a folded part.
    """
    pairs = [(remark, number) for number, c in enumerate(rows, start=1) for remark in dict.fromkeys(of(c)) if remark]
    alike = _grouped(pairs, lambda pair: _NUMBER.sub("#", pair[0]))
    if not alike:
        return ""
    cut, whole = (_lines(alike.values(), len(rows), most) for most in (MOST_VALUES, None))
    if len(whole) > MOST_NOTES:
        return folded(f"{title} ({len(whole)} remarks)", bullets(whole))
    listed = paragraphs((f"{title}:", bullets(cut)))
    longer = [line for line, short in zip(whole, cut) if line != short]
    return paragraphs((listed, folded(f"{title}, in full", bullets(longer)))) if longer else listed


def _lines(alike: Iterable[list[tuple[str, int]]], rows: int, most: int | None) -> list[str]:
    """One line for the remarks that are alike."""
    lines = []
    for found in alike:
        about = sorted({number for _, number in found})
        where = "" if len(about) == rows else f" ({_ranges(about)})"
        lines.append(prose(merged(list(dict.fromkeys(remark for remark, _ in found)), most)) + where)
    return lines


def merged(remarks: Sequence[str], most: int | None = MOST_VALUES) -> str:
    """Remarks that differ in numbers only as one: 'n=1, k=4', 'n=2, k=4' become 'n=1 / 2, k=4'; at most `most` each."""
    columns = zip(*(_NUMBER.findall(remark) for remark in remarks))
    shown = iter([_either(column, most) for column in columns])
    return _NUMBER.sub(lambda _: next(shown), remarks[0])


def _either(values: Sequence[str], most: int | None) -> str:
    """One value; or all in the order of the remarks, so that lists in a remark run side by side; or the different ones.

    The last if there are too many remarks to be followed one by one.
    """
    if len(set(values)) == 1:
        return values[0]
    if most is not None and len(values) > most:
        values = list(dict.fromkeys(values))
    if most is not None and len(values) > most:
        values = [*values[: most - 2], "...", values[-1]]
    return " / ".join(values)


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers in short: '1-4, 7'."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def sources(comparisons: Sequence[Comparison]) -> str:
    """Where the figures stand."""
    found = list(dict.fromkeys(c.source for c in comparisons if c.source))
    return f"Published in: {'; '.join(map(prose, found))}." if found else ""


def _grouped(items: Iterable, key: Callable) -> dict:
    """Items by key, both in order of appearance."""
    found: dict = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found
