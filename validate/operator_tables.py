"""Operator-latency tables of any of the known forms, brought to the columns of `calibration.kernels.tables`.

The operator follows from how a file's name begins (gemm_, attention_prefill_, attention_decode_, moe_, allreduce,
kernel_power, vidur_), the GPU from the rest of the name, from a column, or from the option `--gpu`.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.kernels import tables
from calibration.kernels.tables import Table
from simulator.device import Device, load_device
from simulator.errors import UserError

OPERATORS = ("gemm", "attention_prefill", "attention_decode", "moe", "allreduce", "kernel_power")
NAMES = "gemm_GPU, attention_prefill_GPU, attention_decode_GPU, moe_GPU, allreduce, kernel_power, vidur_GPU (.csv, .gz)"
VIDUR_DTYPE = "fp16"
VIDUR_GPU = {"a100": "a100-sxm-80gb", "h100": "h100-sxm", "a40": "a40"}
_VIDUR_SHAPE = ("gpu", "model", "tp", "num_tokens", "n_embd", "n_expanded_embd", "n_head", "n_kv_head", "use_gated_mlp")
_SIZES = ("tp", "num_tokens", "n_embd", "n_expanded_embd", "n_head", "n_kv_head")


@dataclass(frozen=True)
class OperatorRows:
    """Rows of one operator on one GPU, columns as in the bundled tables; `row` their place below the header, from 1."""

    operator: str
    device: Device
    table: Table
    row: np.ndarray

    def take(self, mask: np.ndarray) -> OperatorRows:
        """The rows where `mask` says so."""
        return OperatorRows(self.operator, self.device, tables.select(self.table, mask), self.row[mask])

    def __len__(self) -> int:
        return len(self.row)


def read_operator_rows(path: str | Path, gpu: str | None = None) -> list[OperatorRows]:
    """The rows of one file, by GPU and operator. UserError (file, column, what was found) on anything else."""
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    if name.startswith("vidur_"):
        return list(_vidur(path, name.removeprefix("vidur_"), gpu))
    operator = next((known for known in OPERATORS if name.startswith(known)), None)
    if operator is None:
        raise UserError(f"operator table '{path}': the name does not say which operator, expected {NAMES}")
    table = tables.read(path, operator)
    row = np.arange(1, 1 + len(table["latency_s"]))
    if operator in ("allreduce", "kernel_power"):
        return list(_by_gpu(path, operator, table, row, gpu))
    device = _device(path, gpu or name.removeprefix(operator).lstrip("_-"))
    return [OperatorRows(operator, device, table, row)]


def _device(path: Path, gpu: str) -> Device:
    try:
        return load_device(gpu)
    except UserError as error:
        raise UserError(f"operator table '{path}': {error}; a name like {NAMES}, or --gpu, says which") from None


def _by_gpu(path: Path, operator: str, table: Table, row: np.ndarray, gpu: str | None) -> Iterator[OperatorRows]:
    """One part per GPU of the column `gpu`, and per operator where the file holds several."""
    for name in dict.fromkeys(table["gpu"].tolist()):
        mask = table["gpu"] == name
        if gpu is not None and name != gpu:
            continue
        rows = OperatorRows(operator, _device(path, name), tables.select(table, mask), row[mask])
        yield from _powered(path, rows) if operator == "kernel_power" else [rows]


def _powered(path: Path, rows: OperatorRows) -> Iterator[OperatorRows]:
    """Rows of a power table by operator, their shapes ("m=1 n=512 k=512") as columns."""
    for operator in dict.fromkeys(rows.table["op"].tolist()):
        if operator not in OPERATORS:
            raise UserError(f"operator table '{path}', column op: found '{operator}', expected one of {OPERATORS[:4]}")
        part = rows.take(rows.table["op"] == operator)
        shapes = [dict(word.partition("=")[::2] for word in text.split()) for text in part.table["shape"]]
        columns: Table = {"latency_s": part.table["latency_s"], "power_w": part.table["power_w"]}
        dtype = "kv_dtype" if operator.startswith("attention") else "dtype"
        columns[dtype] = np.array([name.removeprefix("kv-") for name in part.table["dtype"]])
        for column in tables.EXPECTED[operator]:
            if column not in (dtype, "latency_us", "kernel_source", "kernel"):
                columns[column] = _shape_column(path, column, shapes)
        yield OperatorRows(operator, part.device, columns, part.row)


def _shape_column(path: Path, column: str, shapes: list[dict[str, str]]) -> np.ndarray:
    key = "dist" if column == "distribution" else column
    try:
        values = [shape[key] for shape in shapes]
        return np.array(values) if column == "distribution" else np.array(values, dtype=np.int64)
    except (KeyError, ValueError):
        raise UserError(f"operator table '{path}', column shape: expected {key}=NUMBER in every row") from None


# -- Vidur's profiles: one row per model, split and number of tokens, one column per operator, in ms ---------------


def _vidur(path: Path, name: str, gpu: str | None) -> Iterator[OperatorRows]:
    """The linear layers as matrix products: fp16, one rank of `tp`; other columns move next to nothing."""
    rows = _plain_rows(path)
    missing = [column for column in _VIDUR_SHAPE if column not in rows]
    if missing:
        raise UserError(
            f"operator table '{path}': column '{missing[0]}' is missing, expected {', '.join(_VIDUR_SHAPE)}"
        )
    size = {column: _numbers(path, column, rows[column]) for column in _SIZES}
    gated = np.array([1.0 + (text == "True") for text in rows["use_gated_mlp"]])
    head_dim = size["n_embd"] / size["n_head"]
    shapes = {
        "attn_pre_proj_ms": (size["n_embd"], (size["n_head"] + 2.0 * size["n_kv_head"]) * head_dim / size["tp"]),
        "attn_post_proj_ms": (size["n_embd"] / size["tp"], size["n_embd"]),
        "mlp_up_proj_ms": (size["n_embd"], gated * size["n_expanded_embd"] / size["tp"]),
        "mlp_down_proj_ms": (size["n_expanded_embd"] / size["tp"], size["n_embd"]),
    }
    names = np.array([gpu or VIDUR_GPU.get(text, text) for text in rows["gpu"]])
    row = np.arange(1, 1 + len(names))
    for device_name in dict.fromkeys(names.tolist()):
        device = _device(path, device_name)
        for column, (k, n) in shapes.items():
            if column in rows:
                latency_s = _numbers(path, column, rows[column], empty=True) * 1e-3
                mask = (names == device_name) & np.isfinite(latency_s)
                yield _as_gemm(device, size["num_tokens"][mask], n[mask], k[mask], latency_s[mask], row[mask])


def _as_gemm(device: Device, m, n, k, latency_s, row) -> OperatorRows:
    table = {"dtype": np.full(len(m), VIDUR_DTYPE), "m": m, "n": n, "k": k, "latency_s": latency_s}
    return OperatorRows("gemm", device, table, row)


def _plain_rows(path: Path) -> Mapping[str, list[str]]:
    """Columns of a CSV file as text."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        raise UserError(f"operator table '{path}' does not exist") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"operator table '{path}' cannot be read: {error}") from None
    short = next((number for number, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if short is not None or not rows:
        what = f"line {short} has another number of fields" if short else "no rows below the header"
        raise UserError(f"operator table '{path}': {what}, expected {len(header)} in every row")
    return {name: list(values) for name, values in zip(header, zip(*rows))}


def _numbers(path: Path, column: str, texts: list[str], empty: bool = False) -> np.ndarray:
    """Positive numbers; with `empty` a cell may hold nothing, which is NaN."""
    out = np.full(len(texts), np.nan)
    for index, text in enumerate(texts):
        if empty and not text.strip():
            continue
        try:
            out[index] = float(text)
        except ValueError:
            out[index] = -1.0
        if not 0.0 < out[index] < np.inf:
            raise UserError(
                f"operator table '{path}', line {index + 2}, column {column}: found '{text[:40]}', expected a positive "
                "number"
            )
    return out
