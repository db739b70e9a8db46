"""What a sweep varies: lists, ranges, grids and tables of settings.

gpu=orin,l4,h100        a list
width=1..32             whole numbers from 1 to 32
rate=0.5..4:0.5         every 0.5; the end only if a step falls on it
width=1..64*2           1, 2, 4, ..., 64
samples=1,2,4..16:4     mixed
rate=piecewise:60x2,60x10;4     parted by ; where a value has commas in it
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from simulator.errors import UserError

MAX_POINTS = 1_000_000
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d\d?)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?:([:*])({_NUMBER}))?")
EXPECTED = "expected values as orin,l4 or ranges as 1..32, 1..32:4 or 1..64*2"


def parse_vary(text: str) -> tuple[str, tuple[str, ...]]:
    """(name, values as text) of "NAME=VALUES", see the module; each value once. UserError on anything else."""
    name, equals, values = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--vary {text}: expected NAME=VALUES, as: --vary width=1..8")
    found: list[str] = []
    for part in values.split(";" if ";" in values else ","):
        found += _values(part.strip(), f"--vary {text}", len(found))
    return name.strip(), tuple(dict.fromkeys(found))


def _values(part: str, where: str, before: int) -> list[str]:
    """What one part of a list stands for; `before`: values in front of it."""
    if not part:
        raise UserError(f"{where}: an empty value; {EXPECTED}")
    match = _RANGE.fullmatch(part)
    if match is None:
        return [part]
    low, high, sign, step = match.groups()
    first, last = Decimal(low), Decimal(high)
    by = Decimal(step) if step else Decimal(1)
    if last < first:
        raise UserError(f"{where}: the range {part} ends before it begins")
    if sign == "*" and (by <= 1 or first <= 0):
        raise UserError(f"{where}: {part} multiplies; expected a beginning above 0 and a factor above 1")
    if sign != "*" and by <= 0:
        raise UserError(f"{where}: the step of {part} must be above 0")
    most = math.log(last / first) / math.log(by) if sign == "*" else (last - first) / by
    if before + most >= MAX_POINTS:
        raise UserError(f"{where}: about {float(most):.3g} values, more than the {MAX_POINTS:,} that a sweep may have")
    count = _count(first, last, by, sign == "*")
    return [_plain(first * by**i if sign == "*" else first + i * by) for i in range(count)]


def _count(first: Decimal, last: Decimal, by: Decimal, multiplies: bool) -> int:
    """How many numbers a range has."""
    if not multiplies:
        return int((last - first) // by) + 1
    about = int(math.log(last / first) / math.log(by))  # may be one off either way
    return next(n for n in range(about + 2, 0, -1) if first * by ** (n - 1) <= last)


def _plain(value: Decimal) -> str:
    return str(int(value)) if value == value.to_integral_value() and value < 10**15 else repr(float(f"{value:.12g}"))


def read_points(path: str) -> list[dict[str, str]]:
    """Explicit points out of a CSV file: names in the first row, one point per row; an empty cell sets nothing.

    UserError, with the number of the row, for anything that is no such table.
    """
    try:
        rows = list(csv.reader(Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines(), strict=True))
    except OSError as error:
        raise UserError(f"--vary-list {path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--vary-list {path}: not a CSV file: {error}") from None
    numbered = [(number, row) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    if len(numbered) < 2:
        raise UserError(f"--vary-list {path}: expected names of settings in the first row and a point in each other")
    names = [name.strip() for name in numbered[0][1]]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--vary-list {path}: the first row has an empty or repeated name: {', '.join(names)}")
    points = []
    for number, row in numbered[1:]:
        if len(row) != len(names):
            raise UserError(f"--vary-list {path}, row {number}: found {len(row)} cells, expected {len(names)}")
        points.append({name: cell.strip() for name, cell in zip(names, row) if cell.strip()})
    return points


def grid(axes: Mapping[str, Sequence[Any]], listed: Iterable[Mapping[str, Any]] = ({},)) -> list[dict[str, Any]]:
    """Every point of `listed` with every combination of `axes`; the last axis changes fastest."""
    listed = list(listed)
    count = len(listed) * math.prod(len(values) for values in axes.values())
    if count > MAX_POINTS:
        raise UserError(f"the sweep has {count:,} points, more than {MAX_POINTS:,}")
    twice = [name for name in axes if any(name in point for point in listed)]
    if twice:
        raise UserError(f"{twice[0]} is varied by --vary and by --vary-list; expected one of the two")
    return [{**point, **dict(zip(axes, values))} for point in listed for values in itertools.product(*axes.values())]
