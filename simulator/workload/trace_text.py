"""Trace files as text: reading, decoding, and tables of checked numbers. Every complaint names file, row and column."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from simulator.errors import UserError
from simulator.workload.lengths import MAX_TOK

MAX_TIME_S = 1e10  # three hundred years; keeps differences of times exact to microseconds
MAX_CELL = 64 * 1024 * 1024  # characters of one CSV cell: a prompt may stand in it
CHUNK = 5_000  # rows that exist as Python lists at one time: few, or the garbage collector walks them again and again


@dataclass(frozen=True)
class TraceText:
    """The text of a trace file and the name under which errors speak of it."""

    name: str
    text: str

    def error(self, found: str, expected: str, row: int | None = None, column: str | None = None) -> UserError:
        """A `UserError`: file, row, column, found, expected. Row 1 is the first line (or entry) of the file."""
        where = f"trace file '{self.name}'"
        where += "" if row is None else f", row {row:,}"
        where += "" if column is None else f", column '{column}'"
        return UserError(f"{where}: found {found}, expected {expected}")

    def first_line(self) -> str:
        """The first line that is not blank, without its end; "" for an empty file."""
        found = re.search(r"\S[^\r\n]*", self.text)
        return found.group().strip() if found else ""


def read_text(path: Path, name: str) -> TraceText:
    """The file as text; gzip is unpacked, whatever the file is called."""
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise UserError(f"trace file '{name}' {what}; expected a CSV, JSON or JSONL file, which may be gzip")
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"trace file '{name}' cannot be read: {error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{data[error.start]:02x}, which is not UTF-8"
        raise TraceText(name, "").error(found, "UTF-8 text", row) from error
    if not text.strip():
        raise TraceText(name, "").error("an empty file", "a header and at least one request")
    return TraceText(name, text)


def shown(cell: object) -> str:
    """A cell as an error message shows it: short, in quotes."""
    text = str(cell)
    return f"'{text}'" if len(text) <= 40 else f"'{text[:37]}...'"


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A CSV file with a header: columns of text cells, all of one length. Cell j stands in row j + 2 of the file."""

    source: TraceText
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def require(self, *names: str) -> None:
        """Refuse a table in which one of the columns is missing."""
        for name in names:
            if name not in self.columns:
                found = f"the columns {', '.join(self.columns)}"
                raise self.source.error(found, f"also a column '{name}'", row=1)

    def error(self, index: int, column: str, expected: str, found: str | None = None) -> UserError:
        """A complaint about one cell."""
        return self.source.error(found or shown(self.columns[column][index]), expected, index + 2, column)

    def numbers(self, column: str, expected: str) -> np.ndarray:
        """The column as float array of shape (rows,), all finite."""
        cells = self.columns[column]
        try:
            values = np.fromiter(map(float, cells), dtype=float, count=len(cells))
        except ValueError:
            raise self.error(next(i for i, cell in enumerate(cells) if not _is_float(cell)), column, expected) from None
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise self.error(int(bad[0]), column, expected)
        return values

    def whole(self, column: str, low: int, high: int, unit: str = "") -> np.ndarray:
        """The column as int64 array of shape (rows,), each from `low` to `high`."""
        expected = f"a whole number{unit} from {low:,} to {high:,}"
        values = self.numbers(column, expected)
        bad = np.flatnonzero((values != np.floor(values)) | (values < low) | (values > high))
        if bad.size:
            raise self.error(int(bad[0]), column, expected)
        return values.astype(np.int64)

    def tokens(self, column: str, low: int = 1) -> np.ndarray:
        """The column as token counts."""
        return self.whole(column, low, MAX_TOK, " of tokens")

    def times(self, column: str) -> np.ndarray:
        """The column as arrival times in seconds: >= 0, ascending."""
        values = self.numbers(column, "a time in seconds >= 0")
        bad = np.flatnonzero((values < 0.0) | (values > MAX_TIME_S))
        if bad.size:
            raise self.error(int(bad[0]), column, f"a time in seconds from 0 to {MAX_TIME_S:g}")
        self.check_ascending(values, column)
        return values

    def check_ascending(self, values: np.ndarray, column: str) -> None:
        """Refuse a time before the one in the row above."""
        back = np.flatnonzero(np.diff(values) < 0)
        if back.size:
            at = int(back[0]) + 1
            found = f"{shown(self.columns[column][at])} after {shown(self.columns[column][at - 1])}"
            raise self.error(at, column, "times in ascending order (sort the file)", found)


def read_table(source: TraceText) -> Table:
    """A CSV file with a header; ragged rows, blank lines between rows and repeated column names are refused."""
    limit = csv.field_size_limit(MAX_CELL)
    try:
        reader = csv.reader(io.StringIO(source.text, newline=""), strict=True)
        header = [name.strip() for name in next(reader)]
        if not header or not all(header) or len(set(header)) != len(header):
            raise source.error(f"the header '{','.join(header)}'", "column names, each once", row=1)
        columns: list[list[str]] = [[] for _ in header]
        while chunk := list(islice(reader, CHUNK)):
            width = set(map(len, chunk))
            if width != {len(header)}:
                chunk = _without_last_blank_lines(chunk, reader, len(columns[0]), len(header), source)
            for column, cells in zip(columns, zip(*chunk)):
                column.extend(cells)
    except csv.Error as error:
        raise source.error(f"text that is not CSV ({error})", "comma-separated values", reader.line_num) from error
    finally:
        csv.field_size_limit(limit)
    if not columns[0]:
        raise source.error("a header and no rows", "at least one request")
    return Table(source, dict(zip(header, columns)))


def _without_last_blank_lines(
    chunk: list[list[str]], reader: object, before: int, width: int, source: TraceText
) -> list[list[str]]:
    """`chunk` when all that is wrong with it are blank lines at the end of the file."""
    at = next(i for i, row in enumerate(chunk) if len(row) != width)
    expected = f"{width} values, as in the header"
    if chunk[at]:
        found = f"{len(chunk[at])} value{'s' if len(chunk[at]) != 1 else ''}"
        raise source.error(found, expected, before + at + 2)
    if any(chunk[at:]) or any(reader):
        raise source.error("a blank line", expected, before + at + 2)
    return chunk[:at]


def _is_float(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# --- JSON -------------------------------------------------------------------------------------------------------------


def read_json_lines(source: TraceText) -> list[dict]:
    """A JSONL file: one object per line. Entry j stands in row j + 1; blank lines are allowed at the end only."""
    lines = source.text.rstrip().split("\n")
    decoder, objects = msgspec.json.Decoder(), []
    for row, line in enumerate(lines, 1):
        try:
            entry = decoder.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise source.error(f"bad JSON {shown(line.strip())} ({error})", "one JSON object", row) from error
        if not isinstance(entry, dict):
            raise source.error(shown(line.strip()), "one JSON object", row)
        objects.append(entry)
    return objects


def json_number(source: TraceText, row: int, entry: dict, field: str, low: float, high: float) -> float:
    """A finite number from `low` to `high` out of a JSON object."""
    value = entry.get(field)
    expected = f"a number from {low:,g} to {high:,g}"
    if field not in entry:
        raise source.error("no such field", expected, row, field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise source.error(shown(value), expected, row, field)
    return value


def json_tokens(source: TraceText, row: int, entry: dict, field: str) -> int:
    """A token count out of a JSON object."""
    value = json_number(source, row, entry, field, 1, MAX_TOK)
    if value != math.floor(value):
        raise source.error(shown(value), "a whole number of tokens", row, field)
    return int(value)


def check_ascending(source: TraceText, times: Sequence[float], field: str) -> None:
    """Refuse a JSON entry whose time lies before that of the entry above it."""
    back = np.flatnonzero(np.diff(np.asarray(times)) < 0)
    if back.size:
        at = int(back[0]) + 1
        raise source.error(f"{times[at]:g} after {times[at - 1]:g}", "times in ascending order", at + 1, field)
