"""Tables of accuracy by setting: which row is about a candidate.

A table is a CSV file with a column `accuracy` (from 0 to 1), columns that are called as settings (strategy, model, gpu,
samples, ...), and, if it has more benchmarks than one, a column `benchmark`. A row is about a candidate when every
setting that it states is the candidate's; an empty cell states nothing. `accuracy_lo` and `accuracy_hi` are the ends of
a 90 % interval. The tables that ship (`shipped`) restate what papers print, each row with its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import UserError, unknown_name
from simulator.planning.accuracy.success import Estimate
from simulator.planning.accuracy.tables import Row, read_table
from simulator.planning.points import name_settings

ABOUT = ("accuracy", "accuracy_lo", "accuracy_hi", "benchmark", "source", "url", "status", "note")
WHAT = "accuracy table"


@dataclass(frozen=True)
class AccuracyTable:
    """The rows of one benchmark. settings: the columns that say what a row is about."""

    name: str
    benchmark: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]

    def of(self, facts: Mapping[str, Any], candidate: str) -> tuple[Estimate, str] | None:
        """(accuracy, where it is from) of what flew with these facts (`candidate_facts`); None where no row is.

        Of several rows the one that states most counts. UserError when two state as much and differ.
        """
        fitting = [row for row in self.rows if all(_same(name, row.cells[name], facts) for name in self.settings)]
        stated = {row.where: sum(row.cells[name] != "" for name in self.settings) for row in fitting}
        most = [row for row in fitting if stated[row.where] == max(stated.values())]
        if not most:
            return None
        found = {row.cells["accuracy"]: row for row in most}
        if len(found) > 1:
            ends = [row.where.rpartition(", ")[2] for row in most[:2]]
            raise UserError(
                f"{WHAT} '{self.name}': {ends[0]} and {ends[1]} are both about candidate '{candidate}', and differ; "
                "expected settings that tell them apart"
            )
        return _estimate(most[0]), self._basis(most[0])

    def _basis(self, row: Row) -> str:
        told = [row.cells.get(name, "") for name in ("source", "note")]
        return "; ".join(part for part in (f"{self.name} {self.benchmark}".strip(), *told) if part)


def shipped() -> dict[str, Path]:
    """The tables that ship, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.csv"))}


def read_accuracy(name: str, benchmark: str | None = None) -> AccuracyTable:
    """A table by the name of one that ships, or a file. UserError on anything else, and for a benchmark it lacks."""
    path = shipped().get(name, Path(name))
    if not path.is_file() and path.suffix.lower() != ".csv":
        raise unknown_name(WHAT, name, shipped(), f"those that ship: {', '.join(shipped())}; yours is a CSV file")
    columns, rows = read_table(path, WHAT)
    if "accuracy" not in columns:
        raise UserError(f"{WHAT} '{name}' has no column 'accuracy'; its columns: {', '.join(columns)}")
    for row in rows:
        _estimate(row)
    settings = tuple(column for column in columns if column not in ABOUT)
    named = _names(name, settings)
    rows = [Row({named.get(key, key): cell for key, cell in row.cells.items()}, row.where) for row in rows]
    chosen = _benchmark(name, rows, benchmark)
    kept = tuple(row for row in rows if row.cells.get("benchmark", "") in (chosen, ""))
    return AccuracyTable(name, chosen, tuple(named.values()), kept)


def _names(name: str, columns: tuple[str, ...]) -> dict[str, str]:
    """Columns and the settings that they are called as. UserError for one that is called as no setting."""
    others = [column for column in columns if column != "strategy"]
    try:
        found = dict(zip(others, name_settings(dict.fromkeys(others, ""), "strategy")))
    except UserError as error:
        raise UserError(f"{WHAT} '{name}', columns: {error}") from None
    return found | {column: column for column in columns if column == "strategy"}


def _benchmark(name: str, rows: list[Row], asked: str | None) -> str:
    """The benchmark that is asked for, as the table spells it; the only one of the table when none is."""
    known = list(dict.fromkeys(row.cells["benchmark"] for row in rows if row.cells.get("benchmark")))
    if asked is None:
        if len(known) > 1:
            raise UserError(f"{WHAT} '{name}' has the benchmarks {', '.join(known)}: name one of them as benchmark")
        return known[0] if known else ""
    found = {each.lower(): each for each in known}.get(asked.lower())
    if found is None:
        raise unknown_name("benchmark", asked, known, f"it has {', '.join(known) or 'no column benchmark'}", name)
    return found


def _estimate(row: Row) -> Estimate:
    value = row.number("accuracy", 0.0, 1.0)
    low, high = (
        row.number(name, 0.0, 1.0) if row.cells.get(name) else value for name in ("accuracy_lo", "accuracy_hi")
    )
    if not low <= value <= high:
        raise UserError(f"{row.where}: accuracy {value:g} lies outside its interval from {low:g} to {high:g}")
    return Estimate(value, low, high)


def _same(name: str, cell: str, facts: Mapping[str, Any]) -> bool:
    """Whether a cell states what flew."""
    if cell == "":
        return True
    if name not in facts or facts[name] is None:
        return False
    wanted, found = _spelled(name, cell), str(facts[name])
    try:
        return math.isclose(float(wanted), float(found))
    except ValueError:
        return wanted.lower() == found.lower()


def _spelled(name: str, cell: str) -> str:
    """A name as results spell it; one that nobody knows as it stands."""
    from simulator.device import load_device
    from simulator.model import load_model
    from simulator.strategies import get_strategy

    look_up = {
        "strategy": lambda: get_strategy(cell).name,
        "model": lambda: load_model(cell).name,
        "gpu": lambda: load_device(cell).id,
    }.get(name)
    try:
        return cell if look_up is None else look_up()
    except UserError:
        return cell
