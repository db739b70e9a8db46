"""The traces that ship with Tokenflight: simulator/workload/traces/*.csv.gz, described in traces.toml beside them."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent / "traces"


class TraceSheet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one built-in trace is and what not to conclude from it."""

    name: str
    title: str
    requests: int
    mean_input_tok: float
    mean_output_tok: float
    duration_s: float | None = None  # None: lengths only, no times
    source: str
    licence: str
    cut: str  # what of the original is here
    traps: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return FOLDER / f"{self.name}.csv.gz"


@cache
def list_traces() -> tuple[TraceSheet, ...]:
    """All built-in traces, in the order of traces.toml: `sheet.name` is what `read_trace` takes as a path."""
    raw = tomllib.loads((FOLDER / "traces.toml").read_text(encoding="utf-8"))
    return tuple(msgspec.convert(entry, TraceSheet) for entry in raw["trace"])


def builtin_trace(name: str) -> TraceSheet | None:
    """The built-in trace of that name; None when there is none."""
    return next((sheet for sheet in list_traces() if sheet.name == name), None)
