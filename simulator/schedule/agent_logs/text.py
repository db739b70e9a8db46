"""A log as text: its lines as JSON objects, and fields of them. Every complaint names file, line and field."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from simulator.errors import UserError
from simulator.schedule.files.complaints import shown
from simulator.workload.lengths import MAX_TOK

MAX_TIME_S = 1e11  # numbers above are no seconds since 1970 but milliseconds, microseconds or nanoseconds
_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9))  # a time below the first is divided by the second


@dataclass(frozen=True)
class LogLine:
    """One object of the log, and how errors speak of it."""

    file: str
    number: int
    entry: dict[str, Any]

    def error(self, field: str, found: str, expected: str) -> UserError:
        """File, line, field, found, expected."""
        where = f", field '{field}'" if field else ""
        return UserError(f"log '{self.file}', line {self.number:,}{where}: found {found}, expected {expected}")


def read_log(path: str | os.PathLike) -> list[LogLine]:
    """The JSON objects of a log, which may be gzip: one per line (blank lines do not matter), or those of one list."""
    name = os.fspath(path)
    text = _read_text(name)
    if text.lstrip()[:1] == "[":
        return _entries(name, text)
    decoder, lines = msgspec.json.Decoder(), []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = decoder.decode(line)
            except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
                found = f"{shown(line.strip())}, which is no JSON ({_cause(error)})"
                raise LogLine(name, number, {}).error("", found, "one JSON object per line") from None
            lines.append(_line(name, number, entry))
    if not lines:
        raise UserError(f"log '{name}': found no line with anything in it, expected one JSON object per request")
    return lines


def _entries(name: str, text: str) -> list[LogLine]:
    """A log that is one JSON list; numbers of lines are those of entries."""
    try:
        entries = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
        raise UserError(
            f"log '{name}': found no JSON ({_cause(error)}), expected one object per line, or a list"
        ) from None
    if not entries:
        raise UserError(f"log '{name}': found an empty list, expected at least one request")
    return [_line(name, number, entry) for number, entry in enumerate(entries, 1)]


def _line(name: str, number: int, entry: object) -> LogLine:
    if not isinstance(entry, dict):
        raise LogLine(name, number, {}).error("", shown(entry), "a JSON object")
    return LogLine(name, number, entry)


def _cause(error: Exception) -> str:
    return "more brackets inside each other than can be read" if isinstance(error, RecursionError) else str(error)


def _read_text(name: str) -> str:
    if not name or "\0" in name:
        raise UserError(f"log {name!r}: expected the name of a JSON-lines file")
    file = Path(name).expanduser()
    try:
        if not file.is_file():
            what = "is not a file" if file.exists() else "does not exist"
            raise UserError(f"log '{name}' {what}; expected a JSON-lines file")
        data = file.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{data[error.start]:02x}, which is not UTF-8"
        raise LogLine(name, line, {}).error("", found, "UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"log '{name}' cannot be read: {getattr(error, 'strerror', None) or error}") from None


# -- fields ----------------------------------------------------------------------------------------------------


def first_of(views: Iterable[Mapping[str, Any]], names: Iterable[str]) -> tuple[str, Any]:
    """(name, value) of the first of `names` that has a value in one of the objects; ("", None) without."""
    views = list(views)
    for name in names:
        for view in views:
            if view.get(name) is not None:
                return name, view[name]
    return "", None


def as_object(value: object) -> dict[str, Any]:
    """A JSON object, also one that stands there as text; {} for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
            return {}
    return value if isinstance(value, dict) else {}


def read_time(line: LogLine, field: str, value: object) -> float:
    """Seconds since 1970 (or since whatever a small number counts from) of ISO 8601 text or a number.

    Numbers are seconds, or by their size milliseconds, microseconds or nanoseconds. A text without time zone is UTC.
    """
    expected = "a time: ISO 8601, or a number of seconds or milliseconds"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise line.error(field, shown(value), expected)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except ValueError:
        return _iso(line, field, value, expected)
    for limit, unit in _UNITS:
        if 0.0 <= number < limit:
            return number / unit
    raise line.error(field, shown(value), expected)


def _iso(line: LogLine, field: str, value: str, expected: str) -> float:
    try:
        time = datetime.fromisoformat(value.strip())
        seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise line.error(field, shown(value), expected) from None
    if not 0.0 <= seconds < MAX_TIME_S:
        raise line.error(field, shown(value), f"{expected}, from the year 1970 on")
    return seconds


def read_seconds(line: LogLine, field: str, value: object) -> float:
    """A duration in the unit of the field."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_TIME_S:
        raise line.error(field, shown(value), "a number >= 0")
    return float(value)


def read_count(line: LogLine, field: str, value: object) -> int:
    """A number of tokens, from 0."""
    whole = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value <= MAX_TOK
        and value == int(value)
    )
    if not whole:
        raise line.error(field, shown(value), f"a whole number of tokens from 0 to {MAX_TOK:,}")
    return int(value)
