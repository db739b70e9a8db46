"""F3 in tables of single operators: rows faster than their bytes, FLOPs or messages allow; and why they may be.

Also F9, times that do not react to their size, F2, links that seem half as fast as they are, and power out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from validate.kernel_floors import Need, link_of, need_of
from validate.operator_tables import OperatorRows

# Rows are below their floor from this on: data sheets and clocks are rounded by about 1 %.
MARGIN = 0.01
# Where experts were drawn at random: the mean of five draws scatters by about a tenth.
DRAWN_MARGIN = 0.15
# A launch floor: times that stay within FLAT (p90 / p10) though rows ask for FLAT_RANGE times as much, at more than
# FLAT_FACTOR times the floor and longer than a kernel in a graph starts (2 to 5 us in the tables that ship).
FLAT, FLAT_RANGE, FLAT_FACTOR, FLAT_FROM_S, FLAT_ROWS = 1.15, 4.0, 5.0, 2e-5, 4
# Messages large enough to fill a link reach 0.6 to 0.9 of it in the tables that ship; elements of 2 bytes taken for
# bytes reach half of that at the most.
LARGE_MESSAGE_BYTE, LINK_SHARE = 64e6, 0.5
POWER_MARGIN = 0.05  # gain error of a board's sensor


@dataclass(frozen=True)
class KernelFinding:
    """Rows of one operator, type and GPU that one sentence is about. worst: floor / latency of the worst row."""

    file: str
    gpu: str
    operator: str
    dtype: str
    check: str
    fault: str
    also: tuple[str, ...]
    severity: str
    confidence: str
    rows: int
    of: int
    worst: float
    worst_row: int
    says: str
    evidence: dict[str, float | str]
    next: str

    @property
    def alarm(self) -> bool:
        """Whether it says more than what is not known."""
        return self.severity != "note"

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def kernel_findings(parts: list[OperatorRows], file: str) -> list[KernelFinding]:
    """All findings of one file. UserError for a type or routing that is not known."""
    found: list[KernelFinding] = []
    for rows in parts:
        if rows.operator == "allreduce" and link_of(rows.device) is None:
            found.append(_no_link(rows, file))
            continue
        need = need_of(rows)
        for dtype in dict.fromkeys(need.dtype.tolist()):
            of_dtype = need.dtype == dtype
            for mask in (of_dtype & ~need.drawn, of_dtype & need.drawn):
                found.append(_below(rows.take(mask), need.take(mask), dtype, file))
            found.append(_flat(rows.take(of_dtype), need.take(of_dtype), dtype, file))
            found.extend(_power(rows.take(of_dtype), dtype, file))
        if rows.operator == "allreduce":
            found.extend(_half_links(rows, file))
    return [finding for finding in found if finding]


def _below(rows: OperatorRows, need: Need, dtype: str, file: str) -> KernelFinding | None:
    latency_s = rows.table["latency_s"]
    share = need.seconds / latency_s
    below = share > 1.0 + (DRAWN_MARGIN if need.drawn.any() else MARGIN)
    if not below.any():
        return None
    at = int(np.argmax(share))
    by = (
        "link"
        if need.link_s[at] == need.seconds[at]
        else "memory"
        if need.memory_s[at] >= need.compute_s[at]
        else "FLOPs"
    )
    l2_byte = rows.device.compute.l2_byte
    hot = (need.working_set_byte < l2_byte) & (need.memory_s >= need.compute_s) & (need.link_s == 0.0)
    served, why = int((below & hot).sum()), _why(rows, below, hot, by, bool(need.drawn.any()))
    moved = f"{need.byte[at] / 1e6:.4g} MB" if by != "FLOPs" else "its FLOPs"
    limit = {
        "link": link_of(rows.device) or 0.0, "memory": rows.device.memory.bandwidth_byte_per_s, "FLOPs": 0.0,
    }[by]  # fmt: skip
    rate = f" at {limit / 1e9:.4g} GB/s" if limit else " at the dense peak"
    return KernelFinding(
        file=file, gpu=rows.device.id, operator=rows.operator, dtype=dtype, check="kernels.floor", fault="F3",
        also=("F9",) if served == int(below.sum()) else ("F1", "F2"), severity="warn" if need.drawn.any() else "fail",
        confidence="possible" if need.drawn.any() else "certain" if rows.operator != "moe" else "likely",
        rows=int(below.sum()), of=len(rows), worst=float(share[at]), worst_row=int(rows.row[at]),
        says=f"{rows.operator} {dtype} on {rows.device.id}: {int(below.sum())} of {len(rows)} rows are faster than the "
        f"data sheet allows, up to {share[at]:.2f} times: row {rows.row[at]} ({shape_of(rows, at)}) takes "
        f"{latency_s[at] * 1e6:.4g} us, but {moved}{rate} need{'s' * (by != 'FLOPs')} "
        f"{need.seconds[at] * 1e6:.4g} us; {why}",
        evidence={
            "latency_s": float(latency_s[at]), "floor_s": float(need.seconds[at]), "byte": float(need.byte[at]),
            "working_set_byte": float(need.working_set_byte[at]), "l2_byte": float(l2_byte),
            "rows_that_fit_in_l2": float(served), "bound": by,
            "formula": "B7: 2 (n - 1)/n bytes / link" if by == "link" else "B6: bytes / bandwidth, FLOPs / peak <= t",
        },
        next="fit memory terms on working sets well above the L2 only" if served else "check types, shapes and units",
    )  # fmt: skip


def _why(rows: OperatorRows, below: np.ndarray, hot: np.ndarray, by: str, drawn: bool) -> str:
    """The likeliest cause of the rows below their floor."""
    n, served = int(below.sum()), int((below & hot).sum())
    l2 = f"{rows.device.compute.l2_byte / 2**20:.0f} MiB"
    if by == "link":
        return "messages counted in other units, or a reduction inside the network"
    if by == "FLOPs":
        return "arithmetic in a smaller type, or at the sparse rate"
    if served == n:
        return f"all of them touch less than the L2 holds ({l2}): repeated replays read it, a real step would not"
    if rows.operator == "moe":
        fewer = "fewer experts touched than the stated routing has, as a router that takes them from groups does"
        return "another draw of the routing than ours, or the L2" if drawn else fewer
    if served:
        return f"{served} of them fit in the L2 ({l2}) altogether, of the others a part does"
    return f"more than the L2 holds ({l2}), yet a part of it stays there between replays, or a type is narrower"


def shape_of(rows: OperatorRows, at: int) -> str:
    """The sizes of one row, as the table names them."""
    skip = {"latency_s", "power_w", "gpu", "dtype", "kv_dtype", "kernel", "kernel_source", "version", "distribution"}
    values = {name: column[at] for name, column in rows.table.items() if name not in skip}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, np.floating) else f"{name}={value}" for name, value in values.items()
    )


def _flat(rows: OperatorRows, need: Need, dtype: str, file: str) -> KernelFinding | None:
    """Times that do not react to their size: the host launched them, the GPU waited (AIC-EAGER)."""
    if rows.operator != "gemm":
        return None
    t, latency_s = rows.table, rows.table["latency_s"]
    shapes: dict[tuple, list[int]] = {}
    for index, key in enumerate(zip(t["n"].tolist(), t["k"].tolist())):
        shapes.setdefault(key, []).append(index)
    flat: list[int] = []
    for members in shapes.values():
        index = np.array(members)
        slow = index[latency_s[index] > FLAT_FACTOR * need.seconds[index]]
        m = t["m"][slow]
        if len(slow) >= FLAT_ROWS and m.max() >= FLAT_RANGE * m.min():
            low, middle, high = np.quantile(latency_s[slow], (0.1, 0.5, 0.9))
            if high <= FLAT * low and middle > FLAT_FROM_S:
                flat.extend(slow.tolist())
    if not flat:
        return None
    index = np.array(flat)
    share = need.seconds[index] / latency_s[index]
    at = int(index[np.argmin(share)])
    floor_s = float(np.median(latency_s[index]))
    return KernelFinding(
        file=file, gpu=rows.device.id, operator=rows.operator, dtype=dtype, check="kernels.launch_floor", fault="F9",
        also=("F5",), severity="warn", confidence="likely", rows=len(index), of=len(rows), worst=float(share.min()),
        worst_row=int(rows.row[at]),
        says=f"{rows.operator} {dtype} on {rows.device.id}: {len(index)} of {len(rows)} rows take about "
        f"{floor_s * 1e6:.3g} us whatever m is, {1.0 / share.max():.0f} to {1.0 / share.min():.0f} times what bytes "
        "and FLOPs need: a launch from the host, not the kernel",
        evidence={"median_latency_s": floor_s, "formula": "D2: p90 / p10 of the latency over m <= 1.15"},
        next="time several operators inside one CUDA graph",
    )  # fmt: skip


def _half_links(rows: OperatorRows, file: str) -> Iterator[KernelFinding]:
    """Large messages that reach under half of the link, all of them: elements taken for bytes would do that."""
    t = rows.table
    large = (t["bytes"] >= LARGE_MESSAGE_BYTE) & rows.device.interconnect.kind.startswith("nvlink")
    full_s = 2.0 * (t["tp"] - 1.0) / t["tp"] * t["bytes"] / (link_of(rows.device) or np.inf)
    for library in dict.fromkeys(t["library"][large].tolist()):
        mask = large & (t["library"] == library)
        share = full_s[mask] / t["latency_s"][mask]
        if mask.sum() < FLAT_ROWS or share.max() >= LINK_SHARE:
            continue
        at = int(np.flatnonzero(mask)[np.argmax(share)])
        yield KernelFinding(
            file=file, gpu=rows.device.id, operator="allreduce", dtype=str(t["dtype"][at]), check="kernels.half_link",
            fault="F2", also=("F1",), severity="warn", confidence="possible", rows=int(mask.sum()), of=len(rows),
            worst=float(share.max()), worst_row=int(rows.row[at]),
            says=f"allreduce {library} on {rows.device.id}: the largest messages reach {share.max():.0%} of the link "
            "at the most: half as much as usual, as if elements of 2 bytes were taken for bytes",
            evidence={"best_share_of_link": float(share.max()), "formula": "C2: ratio 2 of B7"},
            next="check whether the column counts bytes or elements",
        )  # fmt: skip


def _power(rows: OperatorRows, dtype: str, file: str) -> Iterator[KernelFinding]:
    """Power of kernel tables against the board's idle power and limit."""
    power_w = rows.table.get("power_w")
    if power_w is None:
        return
    limit_w, idle_w = rows.device.power.limit_w, rows.device.power.idle_w
    for kind, excess, bound_w in (("limit", power_w / limit_w, limit_w), ("idle", idle_w / power_w, idle_w)):
        beyond = excess > 1.0 + POWER_MARGIN
        if beyond.any():
            at = int(np.argmax(excess))
            yield KernelFinding(
                file=file, gpu=rows.device.id, operator=rows.operator, dtype=dtype, check=f"kernels.power_{kind}",
                fault="F3", also=("F5",), severity="fail", confidence="likely", rows=int(beyond.sum()), of=len(rows),
                worst=float(excess[at]), worst_row=int(rows.row[at]),
                says=f"{rows.operator} {dtype} on {rows.device.id}: {int(beyond.sum())} of {len(rows)} rows draw "
                f"{'more than the limit' if kind == 'limit' else 'less than idle power'}, {bound_w:g} W: row "
                f"{rows.row[at]} {power_w[at]:.4g} W",
                evidence={"power_w": float(power_w[at]), "bound_w": bound_w, "formula": "B5: idle <= power <= limit"},
                next="check the power limit in force and what the sensor covers",
            )  # fmt: skip


def _no_link(rows: OperatorRows, file: str) -> KernelFinding:
    return KernelFinding(
        file=file, gpu=rows.device.id, operator=rows.operator, dtype="", check="kernels.unverified", fault="F1",
        also=(), severity="note", confidence="possible", rows=len(rows), of=len(rows), worst=0.0,
        worst_row=int(rows.row[0]),
        says=f"allreduce on {rows.device.id}: the data sheet states no link, so {len(rows)} rows are unverified",
        evidence={}, next="add the link's rate to the data sheet",
    )  # fmt: skip
