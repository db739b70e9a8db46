"""The ledger of operator errors: every kernel model against every table, in-sample, held out, beside a plain roofline.

Errors are predicted / measured - 1. "Held out": each row predicted by a fit that saw neither its row nor its shape
(weight shape, head shape, model, or message size, whichever the table varies). Rows that the L2 cache serves and
all-reduces launched eagerly are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calibration.kernels import attention, collective, gemm, moe, tables
from calibration.kernels.build import GEMM_DTYPE, TABLED_GROUPS, Progress, errors_of, fit_group, has_table, parallel
from simulator.device import load_device
from simulator.parameters import MOE_GROUPS

_OPERATOR = {
    "gemm16": ("matrix product", "16 bit"),
    "gemm8": ("matrix product", "8 bit"),
    "prefill": ("attention, prefill", "16- and 8-bit KV"),
    "decode": ("attention, decode", "16- and 8-bit KV"),
    "collective": ("all-reduce", "in CUDA graphs"),
    "moe16": ("fused experts", "16 bit"),
    "moe4_weight_only": ("fused experts", "4-bit weights (Marlin)"),
    "moe8": ("fused experts", "8 bit"),
    "moe8_block": ("fused experts", "8 bit in blocks"),
    "moe_mxfp4": ("fused experts", "mxfp4 weights"),
    "moe_mxfp4_a8": ("fused experts", "mxfp4 weights, 8-bit arithmetic"),
    "moe_nvfp4": ("fused experts", "nvfp4"),
}


def operator_ledger(
    progress: Progress = lambda done, total: None, gpus: Sequence[str] = tables.GPUS, jobs: int = 1
) -> list[dict[str, Any]]:
    """One row per GPU and operator: n, bias (median), median and p90 of |error| in-sample and held out, as fractions.

    Keys: gpu, group, operator, class, n, in_bias, in_median, in_p90, held_bias, held_median, held_p90,
    roofline_median. Nothing is subsampled; about a minute on one core.
    """
    found = parallel(ledger_of, tuple(gpus), jobs, progress)
    return [row for rows in found for row in rows]


def ledger_of(gpu: str) -> list[dict[str, Any]]:
    """The rows of one GPU."""
    return [_row(gpu, group) for group in TABLED_GROUPS if has_table(group, gpu)]


def _row(gpu: str, group: str) -> dict[str, Any]:
    inside = errors_of(group, gpu, fit_group(group, (gpu,)).values)
    outside, counted = held_out_errors(group, gpu)
    plain = roofline_errors(group, gpu)[counted]
    operator, kind = _OPERATOR[group]
    return {
        "gpu": gpu, "group": group, "operator": operator, "class": kind, "n": int(inside.size),
        **_summary("in", inside), **_summary("held", outside[counted]),
        "roofline_median": float(np.median(np.abs(np.expm1(plain)))),
    }  # fmt: skip


def _summary(prefix: str, errors: np.ndarray) -> dict[str, float]:
    size = np.abs(np.expm1(errors))
    return {
        f"{prefix}_bias": float(np.expm1(np.median(errors))),
        f"{prefix}_median": float(np.median(size)),
        f"{prefix}_p90": float(np.quantile(size, 0.9)),
    }


def held_out_errors(group: str, gpu: str) -> tuple[np.ndarray, np.ndarray]:
    """(log(predicted / measured) of every row under fits that did not see its shape, which rows count)."""
    if group in GEMM_DTYPE or group == "collective":
        rows = collective.load(gpu) if group == "collective" else gemm.load(gpu, GEMM_DTYPE[group])
        found = (collective if group == "collective" else gemm).held_out(rows, load_device(gpu))
        return np.log1p(found.relative), found.counted
    held = (moe if group in MOE_GROUPS else attention).held_out(group, gpu)
    return held.errors, held.cold


def roofline_errors(group: str, gpu: str) -> np.ndarray:
    """log(predicted / measured) of every row under max(FLOPs / peak, bytes / bandwidth) with data-sheet figures.

    All-reduce: 2 (w - 1)/w bytes over the link, the ring's lower bound.
    """
    if group in GEMM_DTYPE:
        return _gemm_roofline(group, gpu)
    if group == "collective":
        rows, links = collective.load(gpu), load_device(gpu).interconnect
        link = links.scale_up_byte_per_s or links.pcie_byte_per_s
        return np.log(2.0 * (rows["tp"] - 1.0) / rows["tp"] * rows["bytes"] / link / rows["latency_s"])
    return _moe_roofline(group, gpu) if group in MOE_GROUPS else _attention_roofline(group, gpu)


def _gemm_roofline(group: str, gpu: str) -> np.ndarray:
    rows, device = gemm.load(gpu, GEMM_DTYPE[group]), load_device(gpu)
    dtype = GEMM_DTYPE[group]
    m, n, k = (rows[name].astype(float) for name in "mnk")
    element = 2.0 if dtype == "bf16" else 1.0
    memory = (element * (n * k + m * k) + 2.0 * m * n) / device.memory.bandwidth_byte_per_s
    return np.log(np.maximum(2.0 * m * n * k / device.compute.peak_flop_per_s[dtype], memory) / rows["latency_s"])


def _attention_roofline(phase: str, gpu: str) -> np.ndarray:
    rows = attention.load_rows(phase, gpu)
    c, device = rows.columns, rows.device
    keys = c["batch"] * c["length"]
    cache = 2.0 * keys * c["kv_heads"] * c["head_dim"] * c["kv_byte"]
    tokens = keys if phase == "prefill" else c["batch"]
    pairs = keys * (c["length"] + 1.0) / 2.0 if phase == "prefill" else keys
    byte = cache + 4.0 * tokens * c["heads"] * c["head_dim"]
    flop = 4.0 * pairs * c["heads"] * c["head_dim"]
    seconds = np.maximum(flop / device.compute.peak_flop_per_s["bf16"], byte / device.memory.bandwidth_byte_per_s)
    return np.log(seconds / rows.latency_s)


def _moe_roofline(group: str, gpu: str) -> np.ndarray:
    rows = moe.load_rows(group, gpu)
    shape, loads = rows.shape, rows.loads
    weights = shape["matrices"] * shape["intermediate"] * shape["hidden"]
    routed = (loads.experts * loads.rows).sum(axis=1)
    byte = loads.experts.sum(axis=1) * weights * shape["weight_byte"] + 4.0 * shape["tokens"] * shape["hidden"]
    seconds = np.maximum(2.0 * routed * weights / shape["peak"], byte / rows.device.memory.bandwidth_byte_per_s)
    return np.log(seconds / rows.latency_s)


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """The ledger as a Markdown table, in per cent."""
    lines = [
        "| GPU | operator | class | n | in-sample: bias / median / p90 | held out: the same | roofline: median |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        inside, held = (
            f"{100 * row[f'{p}_bias']:+.1f} / {100 * row[f'{p}_median']:.1f} / {100 * row[f'{p}_p90']:.1f} %"
            for p in ("in", "held")
        )
        lines.append(
            f"| {row['gpu']} | {row['operator']} | {row['class']} | {row['n']:,} | {inside} | {held} "
            f"| {100 * row['roofline_median']:.0f} % |"
        )
    return "\n".join(lines) + "\n"
