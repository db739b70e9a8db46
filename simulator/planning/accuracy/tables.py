"""Rows of a CSV file with a header, and where each one stands: what the readers of accuracy files share."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row: cells by column without blanks around them, and where it stands, for complaints."""

    cells: dict[str, str]
    where: str

    def number(self, column: str, least: float, most: float, whole: bool = False) -> float:
        """The number in a column, between bounds. UserError when there is none."""
        text = self.cells[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (whole and not value.is_integer()):
            noun = "a whole number" if whole else "a number"
            ends = f"from {least:g} to {most:g}" if math.isfinite(most) else f">= {least:g}"
            raise UserError(f"{self.where}: {column} is '{text}', expected {noun} {ends}")
        return value


def read_table(path: str | Path, what: str) -> tuple[tuple[str, ...], list[Row]]:
    """(columns, rows) of a CSV file; `what` it is called in complaints. UserError when it is none, or empty."""
    where = Path(path)
    if not where.is_file():
        raise UserError(f"{what} '{path}' {'is not a file' if where.exists() else 'does not exist'}")
    try:
        lines = [line for line in csv.reader(where.read_text(encoding="utf-8-sig").splitlines()) if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{what} '{path}' cannot be read as text: {error}") from None
    if len(lines) < 2:
        raise UserError(f"{what} '{path}' has no rows; expected a header and at least one row")
    columns = tuple(name.strip() for name in lines[0])
    if len(set(columns)) < len(columns):
        raise UserError(f"{what} '{path}' has two columns of the same name: {', '.join(columns)}")
    return columns, [_row(columns, line, f"{what} '{path}', row {i}") for i, line in enumerate(lines[1:], 2)]


def _row(columns: Sequence[str], line: Sequence[str], where: str) -> Row:
    if len(line) != len(columns):
        raise UserError(f"{where}: found {len(line)} cells, expected {len(columns)}")
    return Row(dict(zip(columns, (cell.strip() for cell in line))), where)
