"""The records of a run of traffic as tables: columns, CSV files, pandas frames."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import UserError
from simulator.traffic.metrics import latencies
from simulator.traffic.served import RequestRecords, Served, StepRecords

ROWS_AT_A_TIME = 50_000


def request_columns(requests: RequestRecords) -> dict[str, np.ndarray]:
    """One entry (N,) per column of the table of requests: the records, then each request's latencies [s]."""
    return {"request": np.arange(len(requests)), **_columns(requests), **latencies(requests)}


def step_columns(steps: StepRecords) -> dict[str, np.ndarray]:
    """One entry (S,) per column of the table of stretches of equal steps."""
    return _columns(steps)


def _columns(records: Any) -> dict[str, np.ndarray]:
    return {field.name: np.asarray(getattr(records, field.name)) for field in fields(records)}


def rows(columns: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """The table row by row, in plain Python types."""
    for values in zip(*(column.tolist() for column in columns.values())):
        yield dict(zip(columns, values))


def request_frame(served: Served):
    """Requests as a pandas DataFrame (optional extra `frames`)."""
    import pandas  # heavy and optional: only here

    return pandas.DataFrame(request_columns(served.requests))


def step_frame(served: Served):
    """Stretches of steps as a pandas DataFrame (optional extra `frames`)."""
    import pandas  # heavy and optional: only here

    return pandas.DataFrame(step_columns(served.steps))


def write_csv(columns: dict[str, np.ndarray], path: str | Path) -> Path:
    """A CSV file with a header; numbers read back as they were, what is not a number is empty, bools true and false."""
    target = Path(path).expanduser()
    length = len(next(iter(columns.values())))
    try:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for first in range(0, length, ROWS_AT_A_TIME):
                part = slice(first, first + ROWS_AT_A_TIME)
                writer.writerows(zip(*(_cells(column[part]) for column in columns.values())))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return target


def _cells(values: np.ndarray) -> list[Any]:
    if values.dtype == bool:
        return np.where(values, "true", "false").tolist()
    cells = values.tolist()
    if values.dtype.kind == "f":
        for i in np.flatnonzero(~np.isfinite(values)).tolist():
            cells[i] = ""
    return cells
