"""Fits the mixture-of-experts model of `simulator/kernels/moe.py` to the measured tables, one set per arithmetic class.

The tables route tokens in two artificial ways, whose loads are rebuilt here so that the model is fitted on the rows
that the experts really got. Held-out errors leave whole models (hidden, intermediate, experts, top-k) out of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from calibration.kernels import tables
from calibration.kernels.attention import FOLDS, HeldOut, group_folds
from calibration.least_squares import Solution, fit_parameters
from simulator.device import Device, load_device
from simulator.kernels.moe import SPECS, Loads, MoeParameters, grouped_time
from simulator.precision import WEIGHT_BYTE, compute_dtype

# Single shapes scatter by this much: power-law rows are five draws measured once (README of the tables).
ERROR_SD = 0.1
# Arithmetic classes: kernels that differ physically. 4-bit weights with 16-bit arithmetic come in two families.
CLASSES = ("moe16", "moe8", "moe8_block", "moe4_weight_only", "moe_mxfp4", "moe_mxfp4_a8", "moe_nvfp4")
FORMATS: dict[str, tuple[str, str, str]] = {  # dtype of the table: class, weights, arithmetic
    "bf16": ("moe16", "bf16", "bf16"),
    "fp8": ("moe8", "fp8", "fp8"),
    "fp8-block": ("moe8_block", "fp8-block", "fp8"),
    "int4-w4a16": ("moe4_weight_only", "int4", "bf16"),
    "mxfp4-w4a16": ("moe_mxfp4", "mxfp4", "bf16"),
    "mxfp4-w4a8": ("moe_mxfp4_a8", "mxfp4", "fp8"),
    "nvfp4": ("moe_nvfp4", "nvfp4", "fp4"),
}
_GROUPS = 32  # equally many experts each, by falling load
_DRAWS = 5


class Rows(NamedTuple):
    """The rows of one class on one GPU, with the loads of the rank that was measured."""

    device: Device
    loads: Loads
    shape: dict[str, np.ndarray]
    latency_s: np.ndarray
    groups: np.ndarray
    cold: np.ndarray

    def take(self, mask: np.ndarray) -> Rows:
        """The rows where `mask` is true."""
        loads = Loads(self.loads.experts[mask], self.loads.rows[mask], self.loads.scattered)
        shape = {name: column[mask] for name, column in self.shape.items()}
        return Rows(self.device, loads, shape, self.latency_s[mask], self.groups[mask], self.cold[mask])

    def errors(self, p: MoeParameters) -> np.ndarray:
        """log(predicted / measured) of every row."""
        return np.log(grouped_time(self.loads, device=self.device, p=p, **self.shape).seconds / self.latency_s)


def classes(gpu: str) -> tuple[str, ...]:
    """The arithmetic classes that `gpu`'s table can calibrate."""
    return classes_of(tables.load("moe", gpu), load_device(gpu))


def classes_of(table: tables.Table, device: Device) -> tuple[str, ...]:
    """The arithmetic classes that a table measured on `device` can calibrate."""
    present = set(_class_of(table, device))
    return tuple(name for name in CLASSES if name in present)


def fit(gpu: str) -> dict[str, Solution]:
    """Every class of one GPU."""
    return {name: fit_class(name, (gpu,)) for name in classes(gpu)}


def fit_class(name: str, gpus: Sequence[str], start: MoeParameters | None = None) -> Solution:
    """One class, one set of parameters for all `gpus` together, each GPU weighing the same. Cold rows only."""
    return fit_rows([load_rows(name, gpu) for gpu in gpus], start)


def fit_rows(sets: Sequence[Rows], start: MoeParameters | None = None) -> Solution:
    """The same on rows at hand, one set per GPU."""
    return _solve([rows.take(rows.cold) for rows in sets], start or MoeParameters())


def parameters(solution: Solution, base: MoeParameters | None = None) -> MoeParameters:
    """The fitted set."""
    return msgspec.structs.replace(base or MoeParameters(), **solution.values)


def held_out(name: str, gpu: str, folds: int = FOLDS) -> HeldOut:
    """Errors of `gpu`'s rows of one class, each predicted by a fit on the cold rows of other models. Deterministic.

    A class that was measured for one model only cannot be held out: its errors are those of the fit.
    """
    rows = load_rows(name, gpu)
    errors = rows.errors(parameters(_solve([rows.take(rows.cold)], MoeParameters())))
    if np.unique(rows.groups).size > 1:
        for test in group_folds(rows.groups, folds):
            found = _solve([rows.take(~test & rows.cold)], MoeParameters())
            errors[test] = rows.take(test).errors(parameters(found))
    return HeldOut(errors, rows.cold)


def in_sample(name: str, gpu: str, p: MoeParameters) -> HeldOut:
    """Errors of `gpu`'s rows of one class with given parameters."""
    rows = load_rows(name, gpu)
    return HeldOut(rows.errors(p), rows.cold)


def load_rows(name: str, gpu: str) -> Rows:
    """The rows of class `name` in the bundled table of `gpu`."""
    return rows_of(name, tables.load("moe", gpu), load_device(gpu), _table_loads(gpu))


def rows_of(name: str, table: tables.Table, device: Device, routed: tuple[np.ndarray, np.ndarray]) -> Rows:
    """The rows of class `name` of a table measured on `device`, without grouped top-k (`_misrouted`).

    routed: `loads_of` the table. Not `cold`: what the L2 cache served.
    """
    mask = (_class_of(table, device) == name) & ~_misrouted(table)
    loads = Loads(*(part[mask] for part in routed), False)
    table = tables.select(table, mask)
    formats = [FORMATS[dtype] for dtype in table["dtype"]]
    number = {key: table[key].astype(float) for key in ("tokens", "hidden", "experts")}
    shape = {
        **number,
        "intermediate": table["inter"] / table["moe_tp"],
        "weight_byte": np.array([WEIGHT_BYTE[weights] for _, weights, _ in formats]),
        "matrices": _matrices(table, device.id),
        "peak": np.array([device.compute.peak_flop_per_s[compute_dtype(device, act)] for _, _, act in formats]),
    }
    read = loads.experts.sum(axis=1) * shape["matrices"] * shape["hidden"] * shape["intermediate"]
    read_byte = read * shape["weight_byte"]
    hot = tables.l2_hot(read_byte, read_byte, table["latency_s"], device)
    models = zip(table["hidden"], table["inter"], table["experts"], table["topk"])
    groups = np.array(["/".join(map(str, model)) for model in models])
    return Rows(device, loads, shape, table["latency_s"], groups, ~hot)


def _class_of(table: tables.Table, device: Device) -> np.ndarray:
    """Class of every row; '' for rows that are left out.

    Marlin kernels read any 4-bit format and are one class. The CUTLASS fp8 kernels of Hopper reach a seventh of the
    memory bandwidth, which no server would accept (trap 4): left out; block-scaled fp8 stands in for them there.
    """
    names = np.array([FORMATS[dtype][0] for dtype in table["dtype"]], dtype="U24")
    names[np.char.find(table["kernel"], "marlin") >= 0] = "moe4_weight_only"
    if device.architecture == "hopper":
        names[(names == "moe8") & (np.char.find(table["kernel"], "cutlass") >= 0)] = ""
    return names


def _misrouted(table: tables.Table) -> np.ndarray:
    """Rows whose routing is not what the table says: DeepSeek-V3's router takes experts from 4 of 8 groups only, which
    halves the experts that the 'balanced' input touches (those rows beat the memory bandwidth by up to 1.7)."""
    deepseek = (table["hidden"] == 7168) & (table["inter"] == 2048) & (table["experts"] == 256)
    return deepseek & (table["distribution"] == "balanced")


def _matrices(table: tables.Table, gpu: str) -> np.ndarray:
    """Weight matrices per expert: 3, but 2 in the Nemotron models (squared ReLU, no gate), except in the older A100
    table, whose times show three."""
    plain = (table["topk"] == 22) | (table["inter"] == 1856)
    return np.where(plain & (gpu != "a100-sxm-80gb"), 2.0, 3.0)


@lru_cache(maxsize=8)
def _table_loads(gpu: str) -> tuple[np.ndarray, np.ndarray]:
    return loads_of(tables.load("moe", gpu))


def loads_of(table: tables.Table) -> tuple[np.ndarray, np.ndarray]:
    """Touched experts and rows per expert (rows of the table, _GROUPS) of the rank that was measured."""
    random = np.random.default_rng(0)
    shape = (table["tokens"].size, _GROUPS)
    experts, rows = np.zeros(shape), np.zeros(shape)
    columns = (table[name] for name in ("tokens", "experts", "topk", "moe_ep", "distribution"))
    for index, (tokens, count, k, ep, distribution) in enumerate(zip(*columns)):
        if distribution == "balanced":
            experts[index, 0] = max(1.0, min(tokens * k, count) / ep)
            rows[index, 0] = tokens * k / ep / experts[index, 0]
            continue
        exponent = float(distribution.removeprefix("power_law_"))
        draws = [_power_law_rows(int(tokens), int(count), int(k), int(ep), exponent, random) for _ in range(_DRAWS)]
        busy = np.sort(np.concatenate(draws))[::-1]
        busy = busy[busy > 0]
        parts = np.array_split(busy, min(_GROUPS, busy.size))
        experts[index, : len(parts)] = [part.size / _DRAWS for part in parts]
        rows[index, : len(parts)] = [part.mean() for part in parts]
    return experts, rows


def _power_law_rows(tokens: int, experts: int, k: int, ep: int, exponent: float, random) -> np.ndarray:
    """Rows of each expert of the busiest rank, as the tables' collector draws them.

    Weights follow a bounded power law; shares are rounded; what rounding leaves over goes to the emptiest experts (the
    times of memory-bound rows show it). An expert chosen more often than there are tokens passes the rest on.
    """
    low, high = (1.0, max(1.001, 0.8 * tokens)) if tokens * k > experts else (0.01, 2.0)
    power = 1.0 - exponent
    weight = ((high**power - low**power) * random.random(experts) + low**power) ** (1.0 / power)
    rows = np.round(weight / weight.sum() * tokens * k).astype(int)
    missing = tokens * k - int(rows.sum())
    order = np.argsort(rows, kind="stable")
    if missing > 0:
        each, rest = divmod(missing, experts)
        rows += each
        rows[order[:rest]] += 1
    for step in range(-missing):
        emptiest = order[step % experts]
        rows[emptiest if rows[emptiest] > 0 else rows.argmax()] -= 1
    excess = int(np.maximum(rows - tokens, 0).sum())
    rows = np.minimum(rows, tokens)
    for expert in np.argsort(rows, kind="stable") if excess else ():
        moved = min(excess, tokens - int(rows[expert]))
        rows[expert] += moved
        excess -= moved
    ranks = rows.reshape(ep, experts // ep)
    return ranks[ranks.sum(axis=1).argmax()]


def _solve(sets: Sequence[Rows], start: MoeParameters) -> Solution:
    """Robust fit of all parameters."""
    scale = [np.sqrt(sets[0].latency_s.size / rows.latency_s.size) / ERROR_SD for rows in sets]

    def errors(found: dict[str, float]) -> np.ndarray:
        p = MoeParameters(**found)
        return np.concatenate([weight * rows.errors(p) for weight, rows in zip(scale, sets)])

    return fit_parameters(msgspec.structs.asdict(start), SPECS, errors)
