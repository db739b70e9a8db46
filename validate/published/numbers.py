"""The published figures that the library of strategies is held against: numbers.csv, one figure a row."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("numbers.csv")


@dataclass(frozen=True)
class Number:
    """A figure as it was published; a column that the source does not state is empty."""

    source: str
    strategy: str
    model: str
    gpu: str
    engine: str
    config: str
    metric: str
    value: float  # NaN where the source gives a range, a bound or several figures: see `text`
    text: str  # the figure as printed
    unit: str
    status: str  # verbatim, derived or secondary
    url: str
    note: str


COLUMNS = tuple(f.name for f in fields(Number))


def numbers(**columns: str) -> list[Number]:
    """All figures whose columns are exactly as asked, in the order of the file. KeyError if there are none.

    numbers(strategy="ThreadWeaver", metric="total generated tokens")
    """
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise KeyError(f"published figures have no column '{unknown[0]}'; columns: {', '.join(COLUMNS)}")
    found = [row for row in all_numbers() if all(getattr(row, name) == wanted for name, wanted in columns.items())]
    if not found:
        raise KeyError(f"no published figure with {_words(columns)}")
    return found


def number(**columns: str) -> Number:
    """The one figure whose columns are exactly as asked. KeyError if there are none or several."""
    found = numbers(**columns)
    if len(found) > 1:
        raise KeyError(f"{len(found)} published figures with {_words(columns)}; expected columns that leave one")
    return found[0]


@cache
def all_numbers() -> tuple[Number, ...]:
    """Every row of numbers.csv."""
    with open(FILE, newline="", encoding="utf-8") as file:
        return tuple(_number(row) for row in csv.DictReader(file))


def _number(row: dict[str, str]) -> Number:
    text = row.pop("value")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    return Number(value=value, text=text, **row)


def _words(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} '{wanted}'" for name, wanted in columns.items())
