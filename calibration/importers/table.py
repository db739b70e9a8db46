"""Imported rows as a run file (docs/records.md), written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.importers.row import Row
from calibration.records import COLUMNS
from simulator.errors import UserError

REQUIRED = ("gpu", "model", "load")  # what `validate` and `calibrate fit` cannot do without


def record_of(run_id: str, row: Row) -> dict[str, Any]:
    """All columns of a row that are known, flags included."""
    columns = {"run_id": run_id, "source": row.source, **row.columns}
    return columns | ({"flags": ";".join(row.flags)} if row.flags else {})


def check_target(path: Path, append: bool) -> None:
    """UserError, before any work, when the file exists and may not be extended, or has other columns."""
    try:
        there = path.exists()
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}") from None
    if there and not append:
        raise UserError(f"'{path}' exists; give another --out, or --append to add to it")
    if there:
        _read(path)


def write_rows(path: Path, rows: Sequence[dict[str, Any]], append: bool) -> None:
    """Write a new file, or add to an existing one. UserError when a run is in it already; then nothing changes."""
    before = ""
    if append and path.exists():
        before, known = _read(path)
        for row in rows:
            if row["run_id"] in known:
                raise UserError(f"'{path}' has run_id '{row['run_id']}' already, expected runs that are not in it")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not before:
        writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    _replace(path, before + text.getvalue())


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> tuple[str, set[str]]:
    """The text of a run file, ending in a line break, and the ids in it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' cannot be read: no UTF-8 text at byte {error.start}") from None
    reader = csv.DictReader(io.StringIO(text))
    try:
        header, ids = reader.fieldnames or [], {row.get("run_id") or "" for row in reader}
    except csv.Error as error:
        raise UserError(f"'{path}', line {reader.line_num}: not CSV: {error}") from None
    if text.strip() and tuple(header) != COLUMNS:
        raise UserError(
            f"'{path}', line 1: other columns than docs/records.md lists, expected all of them in that order"
        )
    return (text if text.endswith("\n") or not text else text + "\n"), ids


def _replace(path: Path, text: str) -> None:
    """Put the text in place at once: a reader sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8", newline="")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}") from None
