"""Many points of one question: what is held fixed, what varies, and a row of figures for each.

A point that cannot be simulated is a row with the reason in it, and the others go on. The same sweep gives the same
rows whatever runs it: a point depends on its settings alone.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simulator.cli.settings import canonical_name, check_names, options_of, read_value
from simulator.device import load_device
from simulator.errors import UserError
from simulator.model import load_model
from simulator.planning.backends import as_completed
from simulator.planning.points import FIGURES, OK, WITH_INTERVAL, Outcome, answer
from simulator.planning.store import OUTCOME, PROVENANCE, Row, Store, cell, key
from simulator.planning.vary import grid
from simulator.scenario import installed_version
from simulator.strategies import get_strategy

CRASHED = "crashed"  # by an error of ours: run again when the sweep goes on
LISTED = {"gpu": "gpus", "strategy": "strategies"}
# Settings that always stand in the table, with the defaults of the commands.
STATED = {"strategy": {"repetitions": 20, "seed": 0}, "traffic": {"seed": 0}}


@dataclass(frozen=True)
class Sweep:
    """What is asked: settings under canonical names, `points` those that differ from point to point."""

    kind: str
    fixed: Mapping[str, Any]
    points: tuple[Mapping[str, Any], ...]

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of what differs, in the order in which they were given."""
        return tuple(dict.fromkeys(name for point in self.points for name in point))

    @property
    def names(self) -> tuple[str, ...]:
        """All settings: what varies, then what is fixed."""
        return (*self.varied, *self.fixed)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table: settings, status and reason, figures with their 90 % intervals, what they rest on."""
        bounded = WITH_INTERVAL[self.kind]
        figures = [
            column
            for name in FIGURES[self.kind]
            for column in ((name, f"{name}_lo", f"{name}_hi") if name in bounded else (name,))
        ]
        return (*self.names, *OUTCOME, *figures, *PROVENANCE)

    def settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of one point, without those that it does not set."""
        return {**point, **self.fixed}

    def cells(self, point: Mapping[str, Any]) -> Row:
        """The settings of one point as they stand in the table."""
        settings = self.settings(point)
        return {name: cell(settings.get(name)) for name in self.names}


def build_sweep(
    kind: str,
    fixed: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    listed: Sequence[Mapping[str, Any]] = ({},),
) -> Sweep:
    """The sweep over every combination of `axes` with every point of `listed`, each point once.

    UserError for a name that nobody knows, one that is fixed and varied, a value that its option cannot read, and
    when there is no GPU or nothing that flies; a combination that does not work is told in its own row.
    """
    fixed, axes = _canonical(fixed, kind), _canonical(axes, kind)
    points = grid(axes, [_canonical(point, kind) for point in listed])
    names = dict.fromkeys(name for point in points for name in point)
    for name in fixed:
        if name in names:
            raise UserError(f"'{name}' is fixed and varied; expected one of the two")
    fixed = {**fixed, **{name: value for name, value in STATED[kind].items() if name not in (*fixed, *names)}}
    check_names((*names, *fixed), kind, _values("strategy", (fixed, *points)))
    _check_known(kind, (fixed, *points))
    if kind == "strategy":
        _check_parameters((fixed, *points))
    read = cache(lambda name, text: read_value(name, text, kind))
    fixed, *points = ({name: read(name, _text(value)) for name, value in each.items()} for each in (fixed, *points))
    found = Sweep(kind, fixed, tuple(points))
    once: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for point in points:
        once.setdefault(key(found.cells(point), found.names), point)
    return Sweep(kind, fixed, tuple(once.values()))


def _canonical(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`settings` under canonical names; UserError for one that is given twice."""
    found: dict[str, Any] = {}
    for raw, value in settings.items():
        name = canonical_name(raw, kind)
        if name in found:
            raise UserError(f"'{name}' is given twice")
        found[name] = value
    return found


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _values(name: str, settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every value that a setting has anywhere, once."""
    return list(dict.fromkeys(str(each[name]) for each in settings if name in each))


def _check_known(kind: str, settings: Sequence[Mapping[str, Any]]) -> None:
    """UserError for a GPU, model or strategy that nobody knows, and for a sweep without a GPU or anything to fly."""
    needed = {"gpu": ("gpu",)} | ({"strategy": ("strategy", "schedule")} if kind == "strategy" else {})
    for name, ways in needed.items():
        if not any(way in each for way in ways for each in settings):
            raise UserError(f"missing --{name}; see simulate --list {LISTED[name]}, or vary it: --vary {name}=...")
    for name, look_up in (("gpu", load_device), ("model", load_model), ("strategy", get_strategy)):
        for value in _values(name, settings):
            look_up(value)


def _check_parameters(settings: Sequence[Mapping[str, Any]]) -> None:
    """UserError for a parameter that none of the strategies takes, or a value of it that none of them can read."""
    takers = [get_strategy(name) for name in _values("strategy", settings)]
    options = options_of("strategy")
    for name in dict.fromkeys(name for each in settings for name in each if name not in options):
        for value in _values(name, settings):
            mistakes = []
            for taker in takers:
                try:
                    taker.resolve({name: value})
                except UserError as error:
                    mistakes.append(error)
            if len(mistakes) == len(takers) and mistakes:
                raise mistakes[0]


def run_sweep(
    sweep: Sweep,
    store: Store,
    *,
    backend: str = "loky",
    jobs: int | None = None,
    address: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], list[str]]:
    """Simulate the points that the (open) store does not have; (all rows in order, tracebacks of errors of ours).

    UserError when the store's rows come from other fixed settings, files or another version.
    """
    cells = [sweep.cells(point) for point in sweep.points]
    files = _FileHashes()
    inputs = [files.of(row.values()) for row in cells]
    order = [key(row, store.settings) for row in cells]
    _check_same(sweep, store, dict(zip(order, inputs)))
    left = [i for i, each in enumerate(order) if each not in store.rows or store.rows[each]["status"] == CRASHED]
    done, total, tracebacks = len(order) - len(left), len(order), []
    tasks = [(i, sweep.kind, sweep.settings(sweep.points[i])) for i in left]
    for i, row, trouble in as_completed(run_point, tasks, backend, jobs, address):
        if row["version"] != installed_version():
            raise UserError(f"a worker runs tokenflight {row['version']}, and this is {installed_version()}")
        store.add({**dict.fromkeys(sweep.columns, ""), **row, **cells[i], "input_files": inputs[i]})
        tracebacks += [trouble] if trouble else []
        done += 1
        if progress is not None:
            progress(done, total)
    return store.finish(order), tracebacks


def run_point(task: tuple[int, str, Mapping[str, Any]]) -> tuple[int, Row, str]:
    """(number, cells of what came out, traceback of an error of ours) of one point; what workers run."""
    number, kind, settings = task
    try:
        outcome = answer(settings, kind, keep_going=True)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        row = {"status": CRASHED, "reason": cell(reason), "version": installed_version()}
        return number, row, traceback.format_exc()
    return number, outcome_cells(outcome), ""


def outcome_cells(outcome: Outcome) -> Row:
    """What came out of a point as cells of the table: all but its settings."""
    row = {"status": outcome.status, "reason": cell(outcome.reason), "version": installed_version()}
    row |= {name: cell(value) for name, value in outcome.figures.items()}
    for name, ends in outcome.intervals.items():
        row |= {f"{name}_{end}": cell(value) for end, value in zip(("lo", "hi"), ends)}
    if outcome.ok:
        facts = outcome.facts
        row |= {"gpu_id": facts["gpu"], "model_id": facts["model"], "calibration": outcome.calibration}
        row["extrapolated"] = cell(" | ".join(facts["calibration"]["extrapolated"]))
    return row


def failures(rows: Iterable[Row]) -> list[Row]:
    """Rows of points that could not be simulated."""
    return [row for row in rows if row["status"] != OK]


def _check_same(sweep: Sweep, store: Store, inputs: Mapping[tuple[Any, ...], str]) -> None:
    """UserError, with the first field that differs, when rows of the store do not belong to this sweep."""
    fixed = {name: cell(value) for name, value in sweep.fixed.items()} | {"version": installed_version()}
    for point, row in store.rows.items():
        wanted = fixed | ({"input_files": inputs[point]} if point in inputs else {})
        for name, value in wanted.items():
            if key(row, [name]) != key(wanted, [name]):
                raise UserError(
                    f"'{store.path}' was written with {name} = {row[name] or 'nothing'}, now it is "
                    f"{value or 'nothing'}; give another --out, or the same options as before"
                )


class _FileHashes:
    """Which files settings name, and what was in them: 'mine.py:3f2a9c01'."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, cells: Iterable[str]) -> str:
        """Of all the files that the settings of a point name."""
        words = (word for text in cells for word in (text, *re.split(r"[\s:@=]", text)) if "." in word or "/" in word)
        found = (self._hash(word) for word in dict.fromkeys(words))
        return " ".join(dict.fromkeys(text for text in found if text))

    def _hash(self, word: str) -> str:
        if word not in self._known:
            path = Path(word).expanduser()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else ""
            self._known[word] = digest and f"{path.name}:{digest}"
        return self._known[word]
