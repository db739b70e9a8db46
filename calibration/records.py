"""Measured-run records: one row per run, the columns of the schema, checked on reading.

The schema (columns, order, units) is documented in `docs/records.md`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from calibration.record_files import read_rows, shown
from simulator.errors import UserError

LOADS = ("static_batch", "closed_loop", "burst", "open_loop", "parallel_sampling")
# Measured columns: what a simulator can be held against.
METRICS = (
    "ttft_s_mean",
    "ttft_s_median",
    "ttft_s_p99",
    "tpot_s_mean",
    "tpot_s_median",
    "tpot_s_p99",
    "itl_s_mean",
    "itl_s_median",
    "itl_s_p99",
    "e2e_s_mean",
    "e2e_s_median",
    "e2e_s_p99",
    "output_tok_per_s",
    "total_tok_per_s",
    "duration_s",
    "batch_mean",
    "power_w",
    "energy_j_per_output_tok",
    "kv_capacity_tok",
)


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured run. None means "not stated by the source", never zero."""

    run_id: str
    source: str
    gpu: str
    power_mode: str | None = None
    n_gpus: int | None = None
    tp: int | None = None
    pp: int | None = None
    ep: int | None = None
    dp: int | None = None
    model: str
    weight_dtype: str | None = None
    activation_dtype: str | None = None
    kv_dtype: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    prefix_caching: bool | None = None
    chunked_prefill: bool | None = None
    cuda_graphs: bool | None = None
    load: str
    concurrency: float | None = None
    request_rate_rps: float | None = None
    num_requests: int | None = None
    input_tok: float | None = None
    output_tok: float | None = None
    length_spread: str | None = None
    ttft_s_mean: float | None = None
    ttft_s_median: float | None = None
    ttft_s_p99: float | None = None
    tpot_s_mean: float | None = None
    tpot_s_median: float | None = None
    tpot_s_p99: float | None = None
    itl_s_mean: float | None = None
    itl_s_median: float | None = None
    itl_s_p99: float | None = None
    e2e_s_mean: float | None = None
    e2e_s_median: float | None = None
    e2e_s_p99: float | None = None
    output_tok_per_s: float | None = None
    total_tok_per_s: float | None = None
    duration_s: float | None = None
    batch_mean: float | None = None
    power_w: float | None = None
    power_scope: str | None = None
    energy_j_per_output_tok: float | None = None
    kv_capacity_tok: float | None = None
    rel_noise: float | None = None
    flags: str | None = None

    @property
    def flag_list(self) -> tuple[str, ...]:
        """The `;`-separated flags."""
        return tuple(flag for flag in (self.flags or "").split(";") if flag)

    def flagged(self, prefix: str) -> bool:
        """Whether any flag starts with `prefix`, for instance "suspect:"."""
        return any(flag.startswith(prefix) for flag in self.flag_list)

    def flag_value(self, prefix: str) -> str | None:
        """What follows `prefix` in the flag that starts with it; None without such a flag."""
        return next((flag.removeprefix(prefix) for flag in self.flag_list if flag.startswith(prefix)), None)

    @property
    def campaign(self) -> str:
        """Which series of measurements of its source a run belongs to; empty when not stated."""
        return next((flag for flag in self.flag_list if flag.startswith(("june_", "set:"))), "")

    def measured(self) -> dict[str, float]:
        """The metric columns that were measured."""
        found = ((name, getattr(self, name)) for name in METRICS)
        return {name: value for name, value in found if value is not None}


COLUMNS = tuple(RunRecord.__struct_fields__)
LONGEST_NAME = 500  # characters of any cell but the flags: names and paths
_REQUIRED = ("run_id", "source", "gpu", "model", "load")


def read_records(path: str | Path) -> list[RunRecord]:
    """All rows of a run file, in order. UserError (file, line, column) on anything that is not one."""
    path = Path(path)
    header, rows = read_rows(path)
    where = f"{path}, line 1" if rows and rows[0][0].startswith("line") else f"{path}"
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in _REQUIRED if name not in header]
    if unknown or missing:
        what = f"unknown column '{shown(unknown[0])}'" if unknown else f"column '{missing[0]}' is missing"
        raise UserError(f"{where}: {what}; expected the columns of docs/records.md")
    seen: dict[str, str] = {}
    records = []
    for place, cells in rows:
        record = _read_row(cells, f"{path}, {place}")
        if record.run_id in seen:
            raise UserError(
                f"{path}, {place}, column run_id: '{shown(record.run_id)}' appears twice, first in "
                f"{seen[record.run_id]}; expected unique ids"
            )
        seen[record.run_id] = place
        records.append(record)
    return records


def _read_row(cells: Mapping[str, str], where: str) -> RunRecord:
    for name in _REQUIRED:
        if name not in cells:
            raise UserError(f"{where}: '{name}' is empty, expected a value")
    for name, value in cells.items():
        if name != "flags" and len(value) > LONGEST_NAME:
            raise UserError(
                f"{where}, column {name}: found '{shown(value)}', expected at most {LONGEST_NAME} characters"
            )
    if cells["load"] not in LOADS:
        raise UserError(f"{where}, column load: load is '{shown(cells['load'])}', expected one of {', '.join(LOADS)}")
    try:
        record = msgspec.convert(cells, RunRecord, strict=False)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        column = place.strip("`").removeprefix("$.")
        raise UserError(f"{where}, column {column}: found '{shown(cells.get(column))}': {what}") from None
    for name, (low, high) in _bounds(record).items():
        value = getattr(record, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"{where}, column {name}: found {value:g}, expected a number from {low:g} to {high:g}")
    if record.engine and not re.fullmatch(r"[\w.-]{1,40}", record.engine):
        raise UserError(f"{where}, column engine: found '{shown(record.engine)}', expected one short word")
    return record


def _bounds(record: RunRecord) -> dict[str, tuple[float, float]]:
    """Smallest and largest value that makes sense, by column."""
    bounds: dict[str, tuple[float, float]] = dict.fromkeys(METRICS, (1e-9, 1e12))
    for name in ("n_gpus", "tp", "pp", "ep", "dp", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        bounds[name] = (1, 1e9)
    bounds |= dict.fromkeys(("concurrency", "num_requests", "input_tok", "output_tok"), (1, 1e9))
    return bounds | {"gpu_memory_utilization": (1e-6, 1.0), "request_rate_rps": (1e-9, 1e9), "rel_noise": (0.0, 10.0)}


def row_hash(record: RunRecord) -> str:
    """Twelve hex digits of a row's content, its name and flags left out: a renamed row is still the same run."""
    content = msgspec.structs.replace(record, run_id="", flags=None)
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:12]


def records_hash(records: list[RunRecord]) -> str:
    """SHA-256 over the rows, independent of their order and of the file's formatting."""
    rows = sorted(msgspec.json.encode(record) for record in records)
    return hashlib.sha256(b"\n".join(rows)).hexdigest()
