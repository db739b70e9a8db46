"""Fits the attention models of `simulator/kernels/attention.py` to the measured tables, and says how well they hold.

Held-out errors leave whole shape groups (query heads, KV heads, head size) out of the fit, since what a user asks for
is a shape that was not measured. Errors are log(predicted / measured).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from calibration.kernels import tables
from calibration.least_squares import Solution, fit_parameters
from simulator.device import Device, load_device
from simulator.kernels.attention import (
    SPECS,
    AttentionParameters,
    DecodeParameters,
    PrefillParameters,
    attention_kernel,
    decode_attention_time,
    prefill_attention_time,
)

# Scatter of one table around another of the same silicon, about 8 % (README of the tables, trap 2).
ERROR_SD = 0.08
FOLDS = 5
_STRUCTS: dict[str, type] = {"prefill": PrefillParameters, "decode": DecodeParameters}
_KV_BYTE = {"bf16": 2.0, "fp8": 1.0}


class HeldOut(NamedTuple):
    """Errors of rows that the fit has not seen; `cold`: rows whose latency owes nothing to the L2 cache."""

    errors: np.ndarray  # (rows,) log(predicted / measured)
    cold: np.ndarray  # (rows,) bool

    def summary(self, cold_only: bool = True) -> dict[str, float]:
        """Number of rows, bias (median), median and 90 % quantile of |predicted / measured - 1|."""
        return summarise(self.errors[self.cold] if cold_only else self.errors)


def summarise(errors: np.ndarray) -> dict[str, float]:
    """n, bias (median), median and p90 of |predicted / measured - 1|, from logarithmic errors."""
    size = np.abs(np.expm1(errors))
    return {
        "n": int(errors.size),
        "bias": float(np.expm1(np.median(errors))),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
    }


def fit(gpu: str) -> dict[str, Solution]:
    """Both phases of one GPU: {'prefill': ..., 'decode': ...}; parameter names without the phase."""
    return {phase: fit_phase(phase, (gpu,)) for phase in _STRUCTS}


def fit_phase(phase: str, gpus: Sequence[str], start: AttentionParameters | None = None) -> Solution:
    """One phase, one set of parameters for all `gpus` together, each GPU weighing the same."""
    return fit_rows(phase, [load_rows(phase, gpu) for gpu in gpus], start)


def fit_rows(phase: str, sets: Sequence[Rows], start: AttentionParameters | None = None) -> Solution:
    """The same on rows at hand, one set per GPU."""
    return _solve(phase, sets, start or AttentionParameters())


def parameters(phase: str, solution: Solution, base: Any = None) -> Any:
    """PrefillParameters or DecodeParameters from a fit; what was not fitted comes from `base`.

    Where no 8-bit cache was measured, its parameters follow those of the 16-bit cache.
    """
    return _complete(phase, base or _STRUCTS[phase](), solution.values)


def held_out(phase: str, gpu: str, folds: int = FOLDS) -> HeldOut:
    """Errors of `gpu`'s rows, each predicted by a fit on the other folds' shape groups. Deterministic."""
    rows = load_rows(phase, gpu)
    errors = np.empty(rows.latency_s.size)
    for test in group_folds(rows.groups, folds):
        found = _solve(phase, [rows.take(~test)], AttentionParameters())
        errors[test] = rows.take(test).errors(parameters(phase, found))
    return HeldOut(errors, rows.cold)


def in_sample(phase: str, gpu: str, p: Any) -> HeldOut:
    """Errors of `gpu`'s rows with given parameters."""
    rows = load_rows(phase, gpu)
    return HeldOut(rows.errors(p), rows.cold)


def group_folds(groups: np.ndarray, folds: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Masks of the test rows, fold by fold; rows of one group (equal entries of `groups`) stay together."""
    names, index = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(names.size)
    for fold in range(min(folds, names.size)):
        yield (order % folds == fold)[index]


class Rows(NamedTuple):
    """One table of one GPU, ready to be predicted: `predict(device, columns, p)` gives seconds."""

    device: Device
    columns: dict[str, np.ndarray]
    latency_s: np.ndarray
    groups: np.ndarray
    cold: np.ndarray
    predict: Callable[[Device, dict[str, np.ndarray], Any], np.ndarray]

    def take(self, mask: np.ndarray) -> Rows:
        """The rows where `mask` is true."""
        columns = {name: column[mask] for name, column in self.columns.items()}
        return Rows(self.device, columns, self.latency_s[mask], self.groups[mask], self.cold[mask], self.predict)

    def errors(self, p: Any) -> np.ndarray:
        """log(predicted / measured) of every row."""
        return np.log(self.predict(self.device, self.columns, p) / self.latency_s)


def load_rows(phase: str, gpu: str) -> Rows:
    """The bundled table of one phase and GPU."""
    return rows_of(phase, tables.load(f"attention_{phase}", gpu), load_device(gpu))


def rows_of(phase: str, table: tables.Table, device: Device) -> Rows:
    """A table of one phase, measured on `device`. L2-hot rows stay in: the decode model is told what the L2 holds."""
    columns = {name: table[name].astype(float) for name in ("batch", "heads", "kv_heads", "head_dim")}
    columns["kv_byte"] = np.array([_KV_BYTE[name] for name in table["kv_dtype"]])
    length = table["q_len" if phase == "prefill" else "kv_len"].astype(float)
    columns["length"] = length
    groups = np.array([f"{h}/{k}/{d}" for h, k, d in zip(table["heads"], table["kv_heads"], table["head_dim"])])
    if phase == "prefill":
        # One new token per prompt is a decode step, and is timed with decode kernels: no part of this model.
        rows = Rows(device, columns, table["latency_s"], groups, np.ones(length.size, bool), _predict_prefill)
        return rows.take(length > 1)
    cache_byte = 2.0 * columns["kv_heads"] * columns["head_dim"] * columns["kv_byte"] * columns["batch"] * length
    columns["l2_resident"] = (cache_byte <= device.compute.l2_byte).astype(float)
    hot = tables.l2_hot(cache_byte, cache_byte, table["latency_s"], device)
    return Rows(device, columns, table["latency_s"], groups, ~hot, _predict_decode)


def _predict_decode(device: Device, columns: dict[str, np.ndarray], p: DecodeParameters) -> np.ndarray:
    return _by_cache(device, columns, p, _decode_seconds)


def _predict_prefill(device: Device, columns: dict[str, np.ndarray], p: PrefillParameters) -> np.ndarray:
    return _by_cache(device, columns, p, _prefill_seconds)


def _by_cache(device: Device, columns: dict[str, np.ndarray], p: Any, seconds: Callable) -> np.ndarray:
    """Rows of one cache type at a time, since kernels differ; shapes go in as arrays, one per row."""
    result = np.empty(columns["batch"].size)
    for kv_byte in np.unique(columns["kv_byte"]):
        mask = columns["kv_byte"] == kv_byte
        result[mask] = seconds(device, {name: c[mask] for name, c in columns.items()}, float(kv_byte), p)
    return result


def _decode_seconds(device: Device, c: dict[str, np.ndarray], kv_byte: float, p: DecodeParameters) -> np.ndarray:
    return decode_attention_time(
        c["batch"], c["batch"] * c["length"], q_heads=c["heads"], kv_heads=c["kv_heads"], head_dim=c["head_dim"],
        kv_byte=kv_byte, kv_elements_per_tok=2.0 * c["kv_heads"] * c["head_dim"],
        flop_per_pair=4.0 * c["heads"] * c["head_dim"], device=device, p=p, l2_resident=c["l2_resident"],
    ).seconds  # fmt: skip


def _prefill_seconds(device: Device, c: dict[str, np.ndarray], kv_byte: float, p: PrefillParameters) -> np.ndarray:
    tokens = c["batch"] * c["length"]
    return prefill_attention_time(
        c["batch"], tokens, tokens * (c["length"] + 1.0) / 2.0, tokens, q_heads=c["heads"], kv_heads=c["kv_heads"],
        head_dim=c["head_dim"], kv_byte=kv_byte, kv_elements_per_tok=2.0 * c["kv_heads"] * c["head_dim"],
        query_elements_per_tok=c["heads"] * c["head_dim"], flop_per_pair=4.0 * c["heads"] * c["head_dim"],
        device=device, p=p,
    ).seconds  # fmt: skip


def _solve(phase: str, sets: Sequence[Rows], start: AttentionParameters) -> Solution:
    """Robust fit of all parameters that the rows can tell anything about."""
    base = getattr(start, phase)
    values = msgspec.structs.asdict(base)
    names = [name for name in values if _seen(phase, name, sets)]
    scale = [np.sqrt(sets[0].latency_s.size / rows.latency_s.size) / ERROR_SD for rows in sets]

    def errors(found: dict[str, float]) -> np.ndarray:
        p = _complete(phase, base, found)
        return np.concatenate([weight * rows.errors(p) for weight, rows in zip(scale, sets)])

    specs = {name: SPECS[f"{phase}.{name}"] for name in names}
    return fit_parameters({name: values[name] for name in names}, specs, errors)


def _seen(phase: str, name: str, sets: Sequence[Rows]) -> bool:
    """Whether the rows depend on parameter `name` at all: cache types and libraries that occur among them."""
    caches = {(rows.device.id, kv_byte): rows.device for rows in sets for kv_byte in np.unique(rows.columns["kv_byte"])}
    if "8bit" in name:
        return any(kv_byte < 2.0 for _, kv_byte in caches)
    if name == "regroup_s":
        return any(attention_kernel(device, kv_byte).regroups for (_, kv_byte), device in caches.items())
    return True


def _complete(phase: str, base: Any, found: dict[str, float]) -> Any:
    """`base` with fitted values; 8-bit parameters that were not fitted follow their 16-bit partner."""
    known = dict(found)
    for name in SPECS:
        short = name.removeprefix(f"{phase}.")
        if name == short or short in found or "_8bit" not in short:
            continue
        partner = short.replace("_8bit", "")
        if partner in found and partner != "start_s":
            known[short] = found[partner]
    return msgspec.structs.replace(base, **known)
