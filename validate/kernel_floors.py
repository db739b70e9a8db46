"""What operators need by the data sheet: bytes, FLOPs and messages of every row of an operator-latency table.

Floors are lower bounds: weights, KV cache, inputs and outputs once each at the pin rate; FLOPs at the dense peak of the
type that is computed; an all-reduce moves 2 (n - 1)/n of its message over a rank's link (Patarasuk and Yuan 2009), half
of it where the switch adds up. Experts are those that the table's stated routing touches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.kernels import moe
from simulator.device import Device
from simulator.errors import UserError
from simulator.kernels.collective import reduces_in_switch
from simulator.precision import ACTIVATION_BYTE, KV_BYTE, WEIGHT_BYTE, compute_dtype
from validate.operator_tables import OperatorRows

GEMM_WEIGHTS = 6  # matrices that the tables' collector replays in turn, so that so many must fit in the L2 together
_FORMATS = {**{name: (weights, act) for name, (_, weights, act) in moe.FORMATS.items()}, "fp16": ("fp16", "fp16")}


@dataclass(frozen=True)
class Need:
    """Per row, shape (R,): bytes moved and what of them is repeated, seconds of each resource."""

    byte: np.ndarray
    working_set_byte: np.ndarray  # what all replays touch between two uses of the same data
    memory_s: np.ndarray
    compute_s: np.ndarray
    link_s: np.ndarray
    dtype: np.ndarray
    drawn: np.ndarray  # bool: the work is an estimate, experts that a random routing touches

    @property
    def seconds(self) -> np.ndarray:
        """The floor: the slowest resource, all others hidden behind it."""
        return np.maximum(np.maximum(self.memory_s, self.compute_s), self.link_s)

    def take(self, mask: np.ndarray) -> Need:
        """The rows where `mask` says so."""
        return Need(*(getattr(self, name)[mask] for name in Need.__dataclass_fields__))


def need_of(rows: OperatorRows) -> Need:
    """What every row needs at data-sheet rates. UserError for a type or routing that is not known."""
    return {
        "gemm": _gemm, "attention_prefill": _attention, "attention_decode": _attention, "moe": _moe,
        "allreduce": _allreduce,
    }[rows.operator](rows)  # fmt: skip


def _need(device: Device, byte, working_set, flop_s, dtype, drawn=None) -> Need:
    byte = np.asarray(byte, dtype=float)
    return Need(
        byte, np.asarray(working_set, dtype=float), byte / device.memory.bandwidth_byte_per_s,
        np.asarray(flop_s, dtype=float), np.zeros(len(byte)), np.asarray(dtype),
        np.zeros(len(byte), dtype=bool) if drawn is None else drawn,
    )  # fmt: skip


def _gemm(rows: OperatorRows) -> Need:
    """Weights n x k, inputs m x k in the type of the arithmetic, 16-bit outputs m x n."""
    t, device = rows.table, rows.device
    m, n, k = (t[name].astype(float) for name in ("m", "n", "k"))
    weight, element, peak = (np.empty(len(m)) for _ in range(3))
    for dtype in np.unique(t["dtype"]):
        mask = t["dtype"] == dtype
        weights, activations = _format(str(dtype))
        weight[mask], element[mask] = WEIGHT_BYTE[weights], ACTIVATION_BYTE.get(activations, 0.5)
        peak[mask] = device.compute.peak_flop_per_s[compute_dtype(device, activations)]
    moved = weight * n * k + element * m * k + 2.0 * m * n
    working = GEMM_WEIGHTS * weight * n * k + 2.0 * m * (k + n)
    return _need(device, moved, working, 2.0 * m * n * k / peak, t["dtype"])


def _format(dtype: str) -> tuple[str, str]:
    """(weights, arithmetic) of a table's dtype."""
    if dtype not in _FORMATS:
        raise UserError(f"operator table, column dtype: found '{dtype[:40]}', expected one of {', '.join(_FORMATS)}")
    return _FORMATS[dtype]


def _attention(rows: OperatorRows) -> Need:
    """Keys and values once, queries and outputs of 16 bit; causal prefill without earlier keys."""
    t, device = rows.table, rows.device
    prefill = rows.operator == "attention_prefill"
    batch, length = (t[name].astype(float) for name in ("batch", "q_len" if prefill else "kv_len"))
    heads, kv_heads, head_dim = (t[name].astype(float) for name in ("heads", "kv_heads", "head_dim"))
    names = t["kv_dtype"]
    unknown = next((str(name) for name in np.unique(names) if name not in KV_BYTE), None)
    if unknown is not None:
        raise UserError(
            f"operator table, column kv_dtype: found '{unknown[:40]}', expected one of {', '.join(KV_BYTE)}"
        )
    kv_byte = np.array([KV_BYTE[name] for name in names])
    peak = np.array([device.compute.peak_flop_per_s[compute_dtype(device, str(name))] for name in names])
    cache = 2.0 * batch * length * kv_heads * head_dim * kv_byte
    tokens = batch * length if prefill else batch
    pairs = batch * length * (length + 1.0) / 2.0 if prefill else batch * length
    # A prefill with an 8-bit cache may write it from keys that are read in 16 bit: never less than the cache.
    return _need(device, cache + 4.0 * tokens * heads * head_dim, cache, 4.0 * pairs * heads * head_dim / peak, names)


def _moe(rows: OperatorRows) -> Need:
    """Touched experts as the routing says (power laws: drawn as the collector drew them), their products once."""
    t, device = rows.table, rows.device
    known = np.array([str(d) == "balanced" or _is_power_law(str(d)) for d in t["distribution"]])
    if not known.all():
        bad = t["distribution"][int(np.argmin(known))]
        raise UserError(f"operator table, column distribution: found '{bad}', expected balanced or power_law_EXPONENT")
    loads = moe.loads_of(t)
    touched, routed = loads[0].sum(axis=1), (loads[0] * loads[1]).sum(axis=1)
    formats = [_format(str(dtype)) for dtype in t["dtype"]]
    weight_byte = np.array([WEIGHT_BYTE[weights] for weights, _ in formats])
    peak = np.array([device.compute.peak_flop_per_s[compute_dtype(device, act)] for _, act in formats])
    weights = moe._matrices(t, device.id) * t["hidden"] * t["inter"] / t["moe_tp"]
    read = touched * weights * weight_byte
    return _need(device, read, read, 2.0 * routed * weights / peak, t["dtype"], t["distribution"] != "balanced")


def _is_power_law(name: str) -> bool:
    try:
        exponent = float(name.removeprefix("power_law_"))
    except ValueError:
        return False
    return name.startswith("power_law_") and exponent > 0.0 and exponent != 1.0


def link_of(device: Device) -> float | None:
    """Bytes per second of one rank's link in one direction; None where the sheet has none."""
    return device.interconnect.scale_up_byte_per_s or device.interconnect.pcie_byte_per_s


def _allreduce(rows: OperatorRows) -> Need:
    t, link = rows.table, link_of(rows.device)
    assert link is not None
    ranks, byte = t["tp"].astype(float), t["bytes"].astype(float)
    share = 2.0 * (ranks - 1.0) / ranks * (0.5 if reduces_in_switch(rows.device) else 1.0)
    none = np.zeros(len(byte))
    return Need(share * byte, none, none, none, share * byte / link, t["dtype"], none > 0.0)
