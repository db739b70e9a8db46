"""Energy of bytes and FLOPs and the power of a busy board: by rule, from power tables, or from measured servers.

Power of a step is idle_w + busy_w + byte_j x bytes/s + flop_j x FLOP/s (W; J per byte and per 16-bit FLOP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from calibration.kernels import tables
from calibration.least_squares import Solution, fit_parameters
from simulator.device import Device, load_device
from simulator.kernels.gemm import GemmParameters, gemm_time
from simulator.overheads import POWER_SPECS

_DIGITS = 4  # significant; far finer than any parameter is known


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Values as files state them."""
    return {name: float(f"{value:.{_DIGITS}g}") for name, value in values.items()}


# vLLM 0.11 on H100 (ML.ENERGY, fitted to 6 %, 8.5 % held out): 186 W, of which 70 idle, + 407 W x bandwidth use +
# 1,016 W x FLOP use.
H100_POWER = {"busy_w": 116.0, "byte_j": 1.215e-10, "flop_j": 1.027e-12}
# Defaults of Jetson boards, GPU_SOC rail, stated before any serving run was looked at (default-jetson.toml).
JETSON_POWER = {"busy_w": 5.0, "byte_j": 1.0e-10, "flop_j": 1.0e-12}
# Busy power as a share of the board's limit, as on H100; Jetson modules, as on AGX Orin.
_BUSY_SHARE, _BUSY_SHARE_MODULE = 116.0 / 700.0, 5.0 / 60.0
# J per byte: HBM as on H100; LPDDR as on Orin. GDDR: a judgement, so that plain streaming draws about two thirds of a
# board's limit; its interface costs more per bit than HBM's.
_BYTE_J = {"HBM": 1.2e-10, "GDDR": 2.0e-10, "LPDDR": 1.0e-10}
# A large product draws this share of the limit: measured on H200 (0.99) and B200 (0.98).
_GEMM_SHARE = 0.98
_GEMM_SIZES = (2048.0, 4096.0, 8192.0)
POWER_SD = 0.1  # of one row: operand values alone move the power of a product (README of the tables, trap 10)
_CLASS_ROWS = 20.0  # rows of one operator and type share an error: together they weigh no more than this many
_POWER_BYTE = {"bf16": 2.0, "fp8": 1.0, "nvfp4": 0.5625}
_POWER_PEAK = {"bf16": "bf16", "fp8": "fp8", "nvfp4": "fp4"}


def rule_power(device: Device, gemm16: Mapping[str, float]) -> dict[str, float]:
    """Power of a board without measurements: busy by its limit, bytes by kind of memory, FLOPs by `_most_flop_j`."""
    busy_w = device.power.limit_w * (_BUSY_SHARE_MODULE if device.memory.unified else _BUSY_SHARE)
    byte_j = next(value for kind, value in _BYTE_J.items() if device.memory.kind.startswith(kind))
    return rounded({"busy_w": busy_w, "byte_j": byte_j, "flop_j": _most_flop_j(device, gemm16, busy_w, byte_j)})


def _most_flop_j(device: Device, gemm16: Mapping[str, float], busy_w: float, byte_j: float) -> float:
    """J per FLOP with which the fastest large 16-bit product, at its rate, draws `_GEMM_SHARE` of the limit.

    Measured rates already contain the throttling at the limit, so the power of a kernel at its measured rate must not
    exceed it: `simulator.step` would throttle it once more.
    """
    size, p = np.array(_GEMM_SIZES), GemmParameters(**gemm16)
    seconds = gemm_time(size, size, size, weight_byte=2.0, activation="bf16", device=device, p=p).seconds
    flop_per_s = 2.0 * size**3 / seconds
    best = int(np.argmax(flop_per_s))
    bytes_w = byte_j * 6.0 * size[best] ** 2 / seconds[best]
    room_w = _GEMM_SHARE * device.power.limit_w - device.power.idle_w - busy_w - bytes_w
    return float(room_w / flop_per_s[best])


class PowerRows(NamedTuple):
    """Power table of one GPU: rates that kernels were measured at, and what the board drew. Arrays (rows,)."""

    byte_per_s: np.ndarray
    flop_per_s: np.ndarray  # in terms of the energy of 16-bit ones, as `simulator.token_costs` counts
    power_w: np.ndarray
    operator: np.ndarray


def power_rows(gpu: str) -> PowerRows:
    """Products and attention that run from device memory. Fused experts are left out: their bytes depend on routing."""
    table, device = tables.load("kernel_power", gpu), load_device(gpu)
    found = []
    for op, dtype, shape, latency_s, power_w in zip(
        *(table[name] for name in ("op", "dtype", "shape", "latency_s", "power_w"))
    ):
        if op == "moe":
            continue
        size = {key: float(value) for key, value in (part.split("=") for part in shape.split())}
        byte, reused, flop = (_gemm_work if op == "gemm" else _attention_work)(size, op, dtype, device)
        cold = reused > device.compute.l2_byte and byte / latency_s < 1.05 * device.memory.bandwidth_byte_per_s
        if cold:
            found.append((byte / latency_s, flop / latency_s, power_w, f"{op} {dtype}"))
    rates = [np.array(column) for column in zip(*found)]
    return PowerRows(*rates)


def _gemm_work(size: Mapping[str, float], op: str, dtype: str, device: Device) -> tuple[float, float, float]:
    """(bytes moved, bytes that the replays use again, FLOPs in terms of 16-bit energy) of one product."""
    m, n, k = (size[name] for name in "mnk")
    weight = _POWER_BYTE[dtype] * n * k
    peaks = device.compute.peak_flop_per_s
    relative = peaks["fp16"] / peaks.get(_POWER_PEAK[dtype], peaks["fp16"])
    return weight + 2.0 * m * (n + k), 6.0 * weight, 2.0 * m * n * k * relative


def _attention_work(size: Mapping[str, float], op: str, dtype: str, device: Device) -> tuple[float, float, float]:
    """The same of one layer's attention; prompts are causal."""
    kv_byte = 2.0 if dtype.endswith("bf16") else 1.0
    width = size["head_dim"]
    if op == "attention_decode":
        keys = size["batch"] * size["kv_len"]
        cache = 2.0 * keys * size["kv_heads"] * width * kv_byte
        return cache + 4.0 * size["batch"] * size["heads"] * width, cache, 4.0 * keys * size["heads"] * width
    tokens = size["batch"] * size["q_len"]
    byte = tokens * width * (4.0 * size["heads"] + 2.0 * size["kv_heads"] * (2.0 + kv_byte))
    return byte, math.inf, 2.0 * tokens * size["q_len"] * size["heads"] * width


def fit_power(gpu: str, prior: Mapping[str, float], free_busy: bool = False) -> Solution:
    """Energy per byte and per FLOP from the power table; busy power stays at the prior's unless `free_busy`.

    Kernels that run at the limit are measured at throttled rates, so power is linear in the rates, without a cap. Busy
    power is held because a table of kernels that fill the board does not tell it from the other two: left free, that
    of B200 runs into its bound of 500 W and takes the bytes' share, where a board that waits for its host draws about
    300 W in all.
    """
    rows, device = power_rows(gpu), load_device(gpu)
    names = ("busy_w", "byte_j", "flop_j") if free_busy else ("byte_j", "flop_j")
    _, index, count = np.unique(rows.operator, return_inverse=True, return_counts=True)
    weight = np.sqrt(np.minimum(1.0, _CLASS_ROWS / count[index])) / POWER_SD

    def errors(values: dict[str, float]) -> np.ndarray:
        return weight * np.log(predicted_power(rows, device, {**prior, **values}) / rows.power_w)

    return fit_parameters({name: prior[name] for name in names}, POWER_SPECS, errors)


def predicted_power(rows: PowerRows, device: Device, values: Mapping[str, float]) -> np.ndarray:
    """Watts of every row."""
    static_w = device.power.idle_w + values["busy_w"]
    return static_w + values["byte_j"] * rows.byte_per_s + values["flop_j"] * rows.flop_per_s


# Whose power table a file rests on.
_POWER_TABLE = {"h200-sxm": "h200-sxm", "hopper": "h200-sxm", "b200-sxm": "b200-sxm", "blackwell": "b200-sxm"}
# Spread of energy: H100 from serving runs (8.5 % held out); power tables, whose kernels are off by 12-16 % in the
# median; conventions where nothing was measured.
_ENERGY_SD = {
    "serving": 0.1, "table": 0.2, "own": 0.25, "siblings": 0.25, "one sibling": 0.3, "none": 0.35, "any": 0.45,
}  # fmt: skip


def power_of(name: str, kind: str, device: Device, gemm16: Mapping[str, float]) -> tuple[dict[str, float], str, float]:
    """(power group of the file `name`, sentence on where it comes from, standard deviation of log energy).

    kind: what the file's kernels rest on ("own", "siblings", ...). device: its reference GPU.
    """
    if name == "h100-sxm":
        return H100_POWER, "power of vLLM 0.11 runs on H100 (ML.ENERGY)", _ENERGY_SD["serving"]
    if name == "jetson":
        return JETSON_POWER, "power: priors of Jetson boards", _ENERGY_SD["none"]
    rule = rule_power(device, gemm16)
    if name in _POWER_TABLE:
        found = {**rule, **fit_power(_POWER_TABLE[name], rule).values}
        most = _most_flop_j(device, gemm16, found["busy_w"], found["byte_j"])
        found["flop_j"] = min(found["flop_j"], most)
        sentence = f"power table of {_POWER_TABLE[name]} (vLLM 0.22.0), busy power by the board's limit"
        return rounded(found), sentence, _ENERGY_SD["table" if kind == "own" else kind]
    return rule, "power by rule: kind of memory, large products at 0.98 of the board's limit", _ENERGY_SD[kind]
