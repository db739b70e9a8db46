"""Machine-readable output: valid JSON, so what is not a number is null."""

from __future__ import annotations

import json
import math
from typing import Any

from simulator.result import SimulationResult


def without_nan(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None; dicts, lists and tuples are walked."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return value


def dump(value: Any) -> str:
    """Compact, strict JSON text."""
    return json.dumps(without_nan(value), ensure_ascii=False, allow_nan=False)


def result_json(result: SimulationResult) -> str:
    """One object; a line per top-level key and per flight, so that `diff` and `grep` work on it."""
    return object_json(result.to_dict(), rows="flights")


def object_json(values: dict[str, Any], rows: str) -> str:
    """One object; a line per key, and per entry of the list under `rows`."""
    lines = []
    for key, value in values.items():
        if key == rows:
            inner = ",\n    ".join(dump(row) for row in value)
            lines.append(f"{json.dumps(key)}: [\n    {inner}\n  ]")
        else:
            lines.append(f"{json.dumps(key)}: {dump(value)}")
    return "{\n  " + ",\n  ".join(lines) + "\n}"


def rows_json(rows: list[dict[str, Any]]) -> str:
    """An array of objects, one per line."""
    return "[\n  " + ",\n  ".join(dump(row) for row in rows) + "\n]" if rows else "[]"
