"""The measured tables of single operators that ship with Tokenflight, as columns of numpy arrays.

Source: NVIDIA AIConfigurator 0.12.0 (Apache-2.0, see NOTICE), one file per operator and GPU, compressed, in
`calibration/data/kernels/`. Columns are those of the files, except that `latency_us` becomes `latency_s`. What exactly
was timed: CUDA events around replays of a CUDA graph, divided by the operators inside, so no launch gap and no
scheduler.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from simulator.device import Device
from simulator.errors import UserError, unknown_name

DIRECTORY = Path(__file__).parent.parent / "data" / "kernels"

# GPUs with GEMM, attention and MoE tables; `allreduce` and `kernel_power` hold other sets of GPUs in one file.
GPUS = ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "l40s", "rtx-pro-6000")

_NUMBERS = frozenset((
    "m", "n", "k", "batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "tokens", "hidden", "inter", "topk",
    "experts", "moe_tp", "moe_ep", "tp", "bytes",
))  # fmt: skip
_MICROSECONDS = "latency_us"
_REAL = frozenset((_MICROSECONDS, "power_w"))
EXPECTED: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "m", "n", "k", _MICROSECONDS),
    "attention_prefill": (
        "batch", "q_len", "heads", "kv_heads", "head_dim", "kv_dtype", "kernel_source", _MICROSECONDS,
    ),
    "attention_decode": (
        "batch", "kv_len", "heads", "kv_heads", "head_dim", "kv_dtype", "kernel_source", _MICROSECONDS,
    ),
    "moe": (
        "dtype", "tokens", "hidden", "inter", "topk", "experts", "moe_tp", "moe_ep", "distribution", "kernel",
        _MICROSECONDS,
    ),
    "allreduce": ("gpu", "library", "version", "kernel", "mode", "dtype", "tp", "bytes", _MICROSECONDS),
    "kernel_power": ("gpu", "op", "dtype", "shape", _MICROSECONDS, "power_w"),
}  # fmt: skip

Table = dict[str, np.ndarray]


def load(operator: str, gpu: str | None = None) -> Table:
    """Columns of the bundled table of `operator` ("gemm", "moe", ...), of one `gpu`; each array has shape (rows,).

    `allreduce` and `kernel_power` are one file for all GPUs: there `gpu` selects rows. Text columns are arrays of
    str, sizes int64, `latency_s` and `power_w` float64. UserError when there is no such table.
    """
    if operator not in EXPECTED:
        raise unknown_name("operator table", operator, EXPECTED)
    if operator in ("allreduce", "kernel_power"):
        table = read(DIRECTORY / f"{operator}.csv.gz", operator)
        if gpu is None:
            return table
        if not np.any(table["gpu"] == gpu):
            raise unknown_name(f"GPU of the {operator} table", gpu, np.unique(table["gpu"]).tolist())
        return select(table, table["gpu"] == gpu)
    if gpu not in GPUS:
        raise unknown_name(f"GPU of the {operator} tables", str(gpu), GPUS)
    return read(DIRECTORY / f"{operator}_{gpu}.csv.gz", operator)


def read(path: str | os.PathLike[str], operator: str) -> Table:
    """Columns of the file at `path` (.csv or .csv.gz), which must have the columns of `operator`. UserError if not."""
    where = f"operator table '{os.fspath(path)}'"
    header, rows = _split(_text(Path(path), where), where)
    if tuple(header) != EXPECTED[operator]:
        raise UserError(f"{where}: found columns {', '.join(header)}, expected {', '.join(EXPECTED[operator])}")
    if not rows:
        raise UserError(f"{where}: found no rows below the header")
    columns = dict(zip(header, zip(*rows)))
    table = {name: _column(name, values, where) for name, values in columns.items()}
    table["latency_s"] = table.pop(_MICROSECONDS) * 1e-6
    return table


def select(table: Mapping[str, np.ndarray], mask: np.ndarray) -> Table:
    """The rows of `table` where `mask` (booleans or indices) says so."""
    return {name: column[mask] for name, column in table.items()}


def l2_hot(stream_byte, working_set_byte, latency_s, device: Device) -> np.ndarray:
    """True for rows whose latency profits from the L2 cache, as it would not in a real step: leave them out of fits.

    The tables replay the same few weights or the same KV cache, so small ones stay in the L2; in a model's step other
    layers have displaced them. `stream_byte` is what the operator reads and writes once, `working_set_byte` what all
    its replays touch between two uses of the same data. Two rules: (1) the row is faster than `stream_byte` at the
    data sheet's bandwidth, which is impossible from DRAM; (2) the working set fits in the L2, and reading it from
    DRAM instead would take more than `_L2_RELEVANT` of the measured time. Rule 2 keeps tiny shapes and
    compute-bound ones, whose time does not depend on where the data lies.
    """
    dram_s = np.asarray(stream_byte, float) / device.memory.bandwidth_byte_per_s
    latency_s = np.asarray(latency_s, float)
    fits = np.asarray(working_set_byte, float) < device.compute.l2_byte
    return (dram_s > latency_s) | (fits & (dram_s > _L2_RELEVANT * latency_s))


_L2_RELEVANT = 0.25
# The collector's graph holds six layers with weights of their own; activations are the same buffers throughout.
_GEMM_LAYERS = 6


def gemm_l2_hot(table: Mapping[str, np.ndarray], device: Device) -> np.ndarray:
    """`l2_hot` for the rows of a GEMM table: six weights, one input, one output."""
    weight = np.where(table["dtype"] == "bf16", 2.0, 1.0) * table["n"] * table["k"]
    activation = 2.0 * table["m"] * (table["k"] + table["n"])
    return l2_hot(weight + activation, _GEMM_LAYERS * weight + activation, table["latency_s"], device)


def write_gzip(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` so that the same text gives the same bytes: no time stamp, no file name in the gzip header."""
    Path(path).write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def _text(path: Path, where: str) -> str:
    """The file's text, decompressed if its name ends in .gz."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{where} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{where} is not a complete gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from None


def _split(text: str, where: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows; every row must have as many fields as the header."""
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    if not lines:
        raise UserError(f"{where} is empty")
    header, rows = lines[0], lines[1:]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{where}, line {number}: found {len(row)} fields, expected {len(header)}")
    return header, rows


def _column(name: str, values: tuple[str, ...], where: str) -> np.ndarray:
    """One column in its type; sizes must be positive whole numbers, latencies and powers positive and finite."""
    if name not in _NUMBERS and name not in _REAL:
        return np.array(values)
    try:
        column = np.array(values, dtype=float)
    except ValueError:
        bad = next(value for value in values if not _is_number(value))
        raise UserError(f"{where}, column {name}: found '{bad[:40]}', expected a number") from None
    wrong = ~(np.isfinite(column) & (column > 0.0))
    if name in _NUMBERS:
        wrong |= column != np.floor(column)
    if wrong.any():
        expected = "a positive number" if name in _REAL else "a positive whole number"
        raise UserError(f"{where}, column {name}: found {values[int(np.argmax(wrong))]}, expected {expected}")
    return column if name in _REAL else column.astype(np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
