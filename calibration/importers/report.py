"""What an import found, file by file: for people and as JSON."""

from __future__ import annotations

from typing import Any

from calibration.importers.row import Row
from calibration.importers.table import REQUIRED, record_of
from calibration.importers.tools import Imported
from calibration.records import METRICS

OPTION = {"gpu": "--gpu", "model": "--model", "engine": "--engine", "tp": "--tp", "weight_dtype": "--weights",
          "load": "--load", "concurrency": "--concurrency", "input_tok": "--input-tok",
          "output_tok": "--output-tok"}  # fmt: skip
# What a prediction rests on; other settings take defaults that `validate` names.
ASKED = ("gpu", "model", "engine", "engine_version", "weight_dtype", "tp", "load", "input_tok", "output_tok")
_VERBS = ("converted", "derived", "empty", "given")


def missing(row: Row) -> list[str]:
    """Columns that a prediction rests on and that nobody stated."""
    asked = list(ASKED)
    if row.columns.get("load") in ("static_batch", "closed_loop"):
        asked.append("concurrency")
    stated = set(row.columns) | ({"tp"} if "n_gpus" in row.columns else set())
    return [name for name in asked if name not in stated]


def text_report(imported: Imported) -> str:
    """A paragraph per file: rows with what was found, converted, derived and left open."""
    count = f"{len(imported.rows)} run{'' if len(imported.rows) == 1 else 's'}"
    lines = [f"{imported.file}: {imported.kind.title}, {count}"]
    previous: list[str] = []
    for run_id, row in imported.rows:
        lines.append(f"  {run_id}: {_found(row)}")
        said = [line for verb in _VERBS for line in _said(row, verb)] + _open(row)
        if said == previous:
            lines.append("    as the run before")
        else:
            lines += said
        previous = said
    lines += [f"  skipped: {one.where}: {one.reason}" for one in imported.skipped]
    return "\n".join(lines)


def _found(row: Row) -> str:
    """The run in one line."""
    return ", ".join(f"{name} {_short(row.columns[name])}" for name in _order(row)) or "nothing"


def _order(row: Row) -> list[str]:
    described = [name for name in row.columns if name not in METRICS]
    return [*described, *(name for name in METRICS if name in row.columns)]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _said(row: Row, verb: str) -> list[str]:
    words = {"converted": "converted", "derived": "derived  ", "empty": "left empty", "given": "given    "}[verb]
    found = [flag.removeprefix(f"{verb}:") for flag in row.flags if flag.startswith(f"{verb}:")]
    return [f"    {words} {text.replace(':', ' ', 1)}" for text in found]


def _open(row: Row) -> list[str]:
    others = [flag for flag in row.flags if not flag.startswith(tuple(f"{verb}:" for verb in _VERBS))]
    lines = [f"    flags      {', '.join(others)}"] if others else []
    if names := missing(row):
        named = [f"{name} ({OPTION.get(name, '--set')})" for name in names]
        lines.append(f"    not stated {', '.join(named)}")
    if needed := [name for name in REQUIRED if name not in row.columns]:
        lines.append(f"    validate and calibrate fit cannot read this row without {', '.join(needed)}")
    return lines


def json_report(imported: list[Imported], out: str, append: bool) -> dict[str, Any]:
    """The same as one object. Flags are as in the file; values are in SI."""
    return {
        "out": out,
        "appended": append,
        "files": [
            {
                "file": one.file,
                "tool": one.kind.tool,
                "kind": one.kind.title,
                "runs": [
                    {"record": record_of(run_id, row), "flags": row.flags, "missing": missing(row)}
                    for run_id, row in one.rows
                ],
                "skipped": [{"where": skip.where, "reason": skip.reason} for skip in one.skipped],
            }
            for one in imported
        ],
    }
