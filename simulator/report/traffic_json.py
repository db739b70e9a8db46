"""A run of traffic as JSON: one object, a line per top-level key and per request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.errors import UserError
from simulator.report.json_out import dump, object_json
from simulator.traffic.result import TrafficResult


def traffic_json(result: TrafficResult, detail: bool = False) -> str:
    """The whole result; `detail`: with an object per request."""
    return object_json(result.to_dict(detail), rows="requests")


def write_json(value: dict[str, Any], path: str) -> Path:
    """`value` as a JSON file; what is not a number is null."""
    target = Path(path).expanduser()
    try:
        target.write_text(dump(value) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return target
