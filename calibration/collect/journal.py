"""The journal of a measurement: append-only JSON lines, each on disk before the next run starts.

    {"journal": 1, "manifest": {...}}                what was asked, the plan, the engine at the first start
    {"engine": {...}, "provenance": {...}}           at every start, and whenever the engine was configured anew
    {"point": {...}, "observation": {...}, "repetitions": [...], "power": {...}, "environment": {...}}
    {"point": {...}, "failed": "reason"}

A kill can only tear the last line. Readers skip a torn line; a writer that comes later ends it and goes on behind it.
Nothing that was written is ever changed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from calibration.collect.point import EngineFacts, Observation, Point
from calibration.collect.validity import disturbed
from simulator.errors import UserError

VERSION = 1
_BEGINNING = b'{"journal":'  # of the first line, also where a kill cut it short
_DIGITS = 9  # of seconds: a nanosecond is finer than any clock here
# What an engine measures of itself at every start may differ a little; it is recorded, not compared.
VOLATILE = frozenset({"num_gpu_blocks", "kv_capacity_tok"})


@dataclass(frozen=True)
class Entry:
    """One measured point: its runs (the first and further repetitions), power windows, surroundings, and the engine."""

    point: Point
    observations: tuple[Observation, ...]
    power: dict[str, Any]  # meter, scope, and its window's fields; empty without a meter
    environment: dict[str, Any]
    facts: EngineFacts


def whole(observations: Iterable[Observation]) -> bool:
    """Whether every request of every run came to its end."""
    return all(request.status == "ok" for seen in observations for request in seen.requests)


@dataclass(frozen=True)
class Failure:
    """A point that could not be measured."""

    point: Point
    reason: str


@dataclass
class Contents:
    """All that a journal holds. `torn`: lines that a kill cut short."""

    manifest: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)  # provenance at every start
    torn: int = 0

    @property
    def done(self) -> frozenset[str]:
        """Keys of the points that were measured whole, and not under other work all the time."""
        return frozenset(
            entry.point.key
            for entry in self.entries
            if whole(entry.observations) and not all(map(disturbed, entry.observations))
        )

    @property
    def latest(self) -> list[Entry]:
        """The entries, of points that were measured again only the last one."""
        return list({entry.point.key: entry for entry in self.entries}.values())

    @property
    def plan(self) -> list[Point]:
        """The points that were to be measured, in order."""
        return msgspec.convert(self.manifest["plan"], list[Point])


def read_journal(path: str | Path) -> Contents | None:
    """What a journal holds; None when it does not exist or a kill came before its first line was whole.

    UserError when the file is not a journal of this version.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"journal '{path}' cannot be read: {error.strerror}") from None
    found: Contents | None = None
    facts: EngineFacts | None = None
    torn, foreign = 0, False
    for number, line in enumerate(lines, 1):
        row = _parsed(line)
        if row is None:
            torn += bool(line)
            foreign |= not line.startswith(_BEGINNING[: len(line)])
            continue
        try:
            if found is None:
                found, facts = _header(row, path)
            else:
                facts = _add(row, found, facts)
        except (msgspec.ValidationError, KeyError) as error:
            raise UserError(f"{path}, line {number}: not a line of a journal: {error}") from None
    if found is None and foreign:
        raise UserError(f"'{path}' is not a journal of calibrate collect")
    if found is not None:
        found.torn = torn
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line as an object; None for one that a kill cut short."""
    try:
        row = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return row if isinstance(row, dict) else None


def _header(row: dict[str, Any], path: Path) -> tuple[Contents, EngineFacts]:
    if row.get("journal") != VERSION:
        raise UserError(f"'{path}', line 1: found {str(row)[:40]}, expected a journal of version {VERSION}")
    manifest = row["manifest"]
    return Contents(manifest), msgspec.convert(manifest["facts"], EngineFacts)


def _add(row: dict[str, Any], found: Contents, facts: EngineFacts) -> EngineFacts:
    """Add one line to the contents; the engine's facts from there on."""
    if "engine" in row:
        found.starts += [row["provenance"]] if row.get("provenance") else []
        return msgspec.convert(row["engine"], EngineFacts)
    point = msgspec.convert(row["point"], Point)
    if "failed" in row:
        found.failures.append(Failure(point, row["failed"]))
        return facts
    runs = [row["observation"], *row.get("repetitions", [])]
    observations = tuple(msgspec.convert(run, Observation) for run in runs)
    found.entries.append(Entry(point, observations, row["power"], row["environment"], facts))
    return facts


class Journal:
    """Writes one journal. A context manager; only one process at a time may write."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: int | None = None

    def __enter__(self) -> Journal:
        """Open for appending. UserError when it cannot be written or another process writes it."""
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.__exit__()
            if isinstance(error, BlockingIOError):
                raise UserError(f"'{self.path}' is being written by another collector; give another --out") from None
            raise UserError(f"journal '{self.path}' cannot be written: {error.strerror}") from None
        self._end_torn_line()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)  # gives the lock back
            self._file = None

    def _end_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._write(b"\n")

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Write the first line."""
        self._append({"journal": VERSION, "manifest": manifest})
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name of a new file is part of what must survive
        finally:
            os.close(folder)

    def engine(self, facts: EngineFacts, provenance: Mapping[str, Any]) -> None:
        """Say how the engine is configured from here on."""
        self._append({"engine": facts, "provenance": provenance})

    def measured(
        self,
        point: Point,
        observations: tuple[Observation, ...],
        power: Mapping[str, Any],
        environment: Mapping[str, Any],
    ) -> None:
        """Write one measured point."""
        first, *further = observations
        row = {"point": point, "observation": first}
        if further:
            row["repetitions"] = further
        self._append({**row, "power": power, "environment": environment})

    def failed(self, point: Point, reason: str) -> None:
        """Write that a point could not be measured."""
        self._append({"point": point, "failed": " ".join(reason.split())})

    def _append(self, row: Mapping[str, Any]) -> None:
        self._end_torn_line()  # of a write that failed: this line must not become part of it
        self._write(msgspec.json.encode(_rounded(msgspec.to_builtins(row))) + b"\n")

    def _write(self, line: bytes) -> None:
        """Write and wait for the disk. UserError when there is no room."""
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            raise UserError(f"journal '{self.path}' cannot be written: {error.strerror}") from None


def _rounded(value: Any) -> Any:
    """The same with floats to a nanosecond: clocks give digits that mean nothing."""
    if isinstance(value, float):
        return round(value, _DIGITS) if abs(value) > 1e-3 else value
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def check_same(found: Any, wanted: Any, where: str, name: str = "") -> None:
    """UserError that names the first field in which a journal differs from what is asked now.

    `found` and `wanted` are plain values. `where` names the journal.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted} - VOLATILE):
            check_same(found.get(key), wanted.get(key), where, f"{name}.{key}" if name else key)
        return
    if found != wanted:
        raise UserError(
            f"{where} was started with {name} = {_shown(found)}, now it is {_shown(wanted)}; "
            "give another --out, or the same options as before"
        )


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
