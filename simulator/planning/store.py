"""The table of a sweep: one row per point, on disk as soon as it is known, complete or as far as a run got.

A CSV file is its own journal: rows are appended whole, in the order in which points end, and a kill can only tear the
last one, which the next run cuts off. When every point is there, the file is replaced by one in the order of the
points. A Parquet file is written then; until then its rows are in NAME.parquet.csv beside it.
"""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.errors import UserError

OUTCOME = ("status", "reason")
PROVENANCE = ("gpu_id", "model_id", "calibration", "extrapolated", "input_files", "version")

Row = dict[str, str]  # cells by column, as they stand in the file


def cell(value: Any) -> str:
    """A value as it stands in a CSV file: numbers so that they read back as they were, nothing for NaN and None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else " ".join(str(value).split())


def key(row: Mapping[str, str], columns: Iterable[str]) -> tuple[Any, ...]:
    """What tells points apart: the cells of `columns`, numbers by their value."""
    return tuple(_number(row[name]) for name in columns)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


class Store:
    """Rows in memory, and in a file if there is one. A context manager; one process at a time may write a file.

    columns: all of them, in order. settings: those that tell points apart. Rows that are there already are kept.
    """

    def __init__(self, path: str | None, columns: Sequence[str], settings: Sequence[str]) -> None:
        self.columns, self.settings = list(columns), list(settings)
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.path = None if path is None else Path(path).expanduser()
        self.parquet = self.path is not None and self.path.suffix.lower() == ".parquet"
        self._journal = self.path
        if self.parquet:
            _pyarrow()
            self._journal = self.path.with_name(f"{self.path.name}.csv")
        self._file: int | None = None

    def __enter__(self) -> Store:
        """Take the file and read what is there. UserError when it is no such table, or somebody else writes it."""
        if self._journal is None:
            return self
        try:
            self._file = os.open(self._journal, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._close()
            raise UserError(f"'{self.path}' is being written by another sweep; give another --out") from None
        except OSError as error:
            self._close()
            raise UserError(f"'{self.path}' cannot be written: {error.strerror or error}") from None
        except UserError:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)  # gives the lock back
            self._file = None

    def _read(self) -> None:
        """Cut off a torn row, read the others, and write the header of a new file."""
        text = Path(self._journal).read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole:
            lines = list(csv.reader(io.StringIO(whole.decode("utf-8", "replace"))))
            self._check_columns(lines[0], empty=len(lines) == 1)
            if len(lines) > 1:
                os.ftruncate(self._file, len(whole))
                self._keep(dict(zip(self.columns, self._checked(line, n))) for n, line in enumerate(lines[1:], 2))
                return
        elif not self.text([]).encode().startswith(text):
            raise UserError(f"'{self.path}' is not the table of a sweep: it has no whole line; give another --out")
        if self.parquet and self.path.exists():
            found = _read_parquet(self.path)
            self._check_columns(found.column_names)
            self._keep({name: cell(value) for name, value in row.items()} for row in found.to_pylist())
        os.ftruncate(self._file, 0)
        self._write(self.text(self.rows.values()).encode())

    def _keep(self, rows: Iterable[Row]) -> None:
        self.rows = {key(row, self.settings): row for row in rows}

    def _check_columns(self, found: list[str], empty: bool = False) -> None:
        """The columns of the file, whose order is kept. UserError, with the first difference, when they are others.

        Those of a file without rows do not matter.
        """
        if not {*OUTCOME} <= {*found}:
            raise UserError(f"'{self.path}' is not the table of a sweep: its columns are {', '.join(found)[:80]}")
        if empty:
            return
        missing = [name for name in self.columns if name not in found]
        extra = [name for name in found if name not in self.columns]
        if missing or extra:
            name, then, now = (missing[0], "without", "set") if missing else (extra[0], "with", "not set")
            raise UserError(
                f"'{self.path}' was written {then} '{name}', which is {now} here; give another --out, or the same "
                "options as before"
            )
        self.columns = found

    def _checked(self, line: list[str], number: int) -> list[str]:
        if len(line) != len(self.columns):
            raise UserError(f"'{self.path}', row {number}: found {len(line)} cells, expected {len(self.columns)}")
        return line

    def text(self, rows: Iterable[Mapping[str, str]], header: bool = True) -> str:
        """`rows` as CSV."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def add(self, row: Row) -> None:
        """One more row, on disk when this returns. UserError when there is no room."""
        self.rows[key(row, self.settings)] = row
        if self._file is not None:
            self._write(self.text([row], header=False).encode())

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            raise UserError(f"'{self.path}' cannot be written: {error.strerror or error}") from None

    def finish(self, order: Iterable[tuple[Any, ...]]) -> list[Row]:
        """The rows of `order`; the file is replaced by one in this order, with what else is there behind them."""
        first = {each: self.rows[each] for each in order if each in self.rows}
        rows = list((first | self.rows).values())
        if self._file is not None:
            if self.parquet:
                _replace(self.path, _parquet(rows, self.columns, self.settings))
                os.unlink(self._journal)
            else:
                _replace(self.path, self.text(rows).encode())
            self._close()
        return list(first.values())


def _replace(path: Path, data: bytes) -> None:
    """Put a file with `data` in the place of `path`, in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}") from None


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("a .parquet file needs the package pyarrow: pip install 'tokenflight[parquet]'") from None
    return pyarrow


def values(rows: Sequence[Row], settings: Sequence[str]) -> dict[str, list[Any]]:
    """Cells by column as values: settings by what all cells of a column are, figures as numbers, the rest as text."""
    found: dict[str, list[Any]] = {}
    for name in rows[0] if rows else ():
        cells = [row[name] for row in rows]
        if name in settings:
            found[name] = typed(cells)
        elif name in (*OUTCOME, *PROVENANCE):
            found[name] = cells
        else:
            found[name] = [float(text) if text else None for text in cells]
    return found


def _parquet(rows: Sequence[Row], columns: Sequence[str], settings: Sequence[str]) -> bytes:
    """The table in Parquet's format; columns of figures are of doubles, also empty ones."""
    arrow = _pyarrow()
    known = values(rows, settings)
    doubles = [name for name in columns if name not in (*settings, *OUTCOME, *PROVENANCE)]
    arrays = {name: arrow.array(known[name], arrow.float64() if name in doubles else None) for name in columns}
    out = arrow.BufferOutputStream()
    arrow.parquet.write_table(arrow.table(arrays), out)
    return out.getvalue().to_pybytes()


def _read_parquet(path: Path) -> Any:
    arrow = _pyarrow()
    try:
        return arrow.parquet.read_table(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise UserError(f"'{path}' is not a Parquet file: {' '.join(str(error).split())[:100]}") from None


def typed(cells: Sequence[str]) -> list[Any]:
    """Cells as whole numbers, numbers or booleans where all of them are; else as text. Empty ones are None."""
    for read in (int, float, {"true": True, "false": False}.__getitem__):
        try:
            return [None if text == "" else read(text) for text in cells]
        except (ValueError, KeyError):
            continue
    return [text or None for text in cells]
