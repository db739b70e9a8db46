"""The rows of a run file, as text by column: CSV, a JSON array of objects, or JSON lines.

Nothing is skipped: a row with too few cells may be the end of a file that was cut, and is refused like one with too
many.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from simulator.errors import UserError

LONGEST_CELL = 10_000  # characters: flags of a run may be long, nothing else is
SHOWN = 60  # characters of a wrong cell that a message shows


def read_rows(path: Path) -> tuple[list[str], list[tuple[str, Mapping[str, str]]]]:
    """(column names, rows): each row with its place ("line 7" or "row 7") and its cells that are not empty.

    UserError naming file and place for anything that is no table of text.
    """
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _of_objects(path, _json_lines(path, text))
    if suffix == ".json" or text.lstrip()[:1] in ("[", "{"):
        return _of_objects(path, _json_array(path, text))
    return _of_csv(path, text)


def shown(value: Any) -> str:
    """A value for a message: on one line, and short."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"run file '{path}' does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"run file '{path}' is not text: byte {error.start} is not UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"run file '{shown(path)}' cannot be read: {error}") from None


def _of_csv(path: Path, text: str) -> tuple[list[str], list[tuple[str, Mapping[str, str]]]]:
    # Strict: an open quote at the end of a file would else swallow the rest of it as one cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(len(text) + 1)  # so that a cell too long is found with its column
    header: list[str] | None = None
    rows: list[tuple[str, Mapping[str, str]]] = []
    line = 1
    try:
        for cells in reader:
            place, line = f"line {line}", reader.line_num + 1
            if not cells:
                continue  # an empty line holds no cells
            if header is None:
                header = [name.strip() for name in cells]
                _check_header(path, header)
                continue
            if len(cells) != len(header):
                which = "more" if len(cells) > len(header) else "fewer"
                raise UserError(
                    f"{path}, {place}: {which} cells than columns, found {len(cells)}, expected {len(header)}"
                )
            rows.append((place, _cells(path, place, dict(zip(header, cells)))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    if header is None:
        raise UserError(f"{path}: the file is empty, expected a header and one row per run")
    return header, rows


def _check_header(path: Path, header: list[str]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}, line 1: a column name appears twice: '{shown(twice)}'")


def _json_lines(path: Path, text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(msgspec.json.decode(line))
            except msgspec.DecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error}") from None
    return found


def _json_array(path: Path, text: str) -> list[Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, list):
        raise UserError(f"{path}: found one JSON value, expected an array with one object per run")
    return found


def _of_objects(path: Path, objects: list[Any]) -> tuple[list[str], list[tuple[str, Mapping[str, str]]]]:
    names: dict[str, None] = {}
    rows: list[tuple[str, Mapping[str, str]]] = []
    for number, found in enumerate(objects, 1):
        place = f"row {number}"
        if not isinstance(found, dict):
            raise UserError(f"{path}, {place}: found {shown(found)}, expected an object with the columns as names")
        names |= dict.fromkeys(found)
        rows.append((place, _cells(path, place, {name: _as_text(path, place, name, v) for name, v in found.items()})))
    if not objects:
        raise UserError(f"{path}: the file is empty, expected one object per run")
    return list(names), rows


def _as_text(path: Path, place: str, name: str, value: Any) -> str:
    """A JSON value as a cell holds it; null is an empty cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise UserError(f"{path}, {place}, column {shown(name)}: found {shown(value)}, expected a number or text")


def _cells(path: Path, place: str, row: Mapping[str, str]) -> dict[str, str]:
    found = {name: value.strip() for name, value in row.items() if value.strip()}
    long = next((name for name, value in found.items() if len(value) > LONGEST_CELL), None)
    if long is not None:
        raise UserError(
            f"{path}, {place}, column {shown(long)}: a cell of {len(found[long]):,} characters, "
            f"expected at most {LONGEST_CELL:,}"
        )
    return found
