"""Kernel parameters from operator tables that a user measured on his own GPU (`calibrate fit --kernels DIR`).

The files have the names and columns of the bundled tables (`calibration/data/kernels`, `tables.py`):
gemm_NAME.csv, attention_prefill_NAME.csv, attention_decode_NAME.csv, moe_NAME.csv, allreduceNAME.csv, plain or .gz.
Rows, models and priors' spreads are those of the bundled tables; the prior medians are the calibration's that is
given, so that few rows move it little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from calibration.kernels import attention, collective, gemm, moe, tables
from calibration.kernels.tables import Table
from calibration.least_squares import Solution
from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.kernels.attention import AttentionParameters
from simulator.parameters import Parameters
from simulator.profile import Calibration

# How the names of an operator's files begin.
_PREFIX = {
    "gemm": "gemm_",
    "attention_prefill": "attention_prefill_",
    "attention_decode": "attention_decode_",
    "moe": "moe_",
    "allreduce": "allreduce",
}
_EXPECTED_FILES = ", ".join(f"{prefix}NAME.csv" for prefix in _PREFIX.values())
# The models know 16-bit numbers of one kind: both have the same peak and the same bytes.
_SAME = {"fp16": "bf16"}
# Text columns that the models read, and what they understand of them.
_KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "gemm": {"dtype": ("bf16", "fp16", "fp8")},
    "attention_prefill": {"kv_dtype": ("bf16", "fp16", "fp8")},
    "attention_decode": {"kv_dtype": ("bf16", "fp16", "fp8")},
    "moe": {"dtype": ("bf16", "fp16", *(name for name in moe.FORMATS if name != "bf16"))},
    "allreduce": {},
}


class GroupFit(NamedTuple):
    """One parameter group fitted on own rows; errors are log(predicted / measured) of the rows that count."""

    group: str
    values: dict[str, float]  # what the fit changed or could have changed, by bare name
    before: np.ndarray
    after: np.ndarray
    aside: int  # rows whose errors are not counted
    why_aside: str
    not_identified: tuple[str, ...]


def fit_tables(directory: Path, device: Device, start: Calibration) -> tuple[dict[str, float], list[str]]:
    """(values by dotted name, sentences for the screen) from the tables in `directory`, measured on `device`.

    start: the calibration whose groups are the prior medians; groups without rows are not among the values.
    UserError when there is no table, when one is not of the expected form or holds rows of another GPU, or when no row
    can be fitted.
    """
    values: dict[str, float] = {}
    said = [f"{name}: not read, expected a name like {_EXPECTED_FILES}" for name in unread_files(directory)]
    for operator, table in read_tables(directory, device).items():
        for found in _FITTERS[operator](table, device, start.parameters):
            if isinstance(found, str):
                said.append(found)
                continue
            values |= {f"{found.group}.{name}": value for name, value in found.values.items()}
            said.append(_sentence(found))
    if not values:
        raise UserError(f"operator tables '{directory}': no rows that can be fitted; {'; '.join(said)}")
    return values, said


# -- reading -------------------------------------------------------------------------------------------------------


def read_tables(directory: Path, device: Device) -> dict[str, Table]:
    """All rows by operator, checked for what the models can read. UserError naming the file if not."""
    out: dict[str, Table] = {}
    for operator, paths in _files(directory).items():
        parts = [_read(path, operator, device) for path in paths]
        out[operator] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return out


def _files(directory: Path) -> dict[str, list[Path]]:
    """Paths by operator, sorted."""
    paths = _csv_files(directory)
    found = {name: [path for path in paths if path.name.startswith(prefix)] for name, prefix in _PREFIX.items()}
    out = {operator: some for operator, some in found.items() if some}
    if not out:
        raise UserError(f"operator tables '{directory}': found none, expected {_EXPECTED_FILES} (or .csv.gz)")
    return out


def _csv_files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"operator tables '{directory}': no such folder, expected one with {_EXPECTED_FILES}")
    return [path for path in sorted(directory.iterdir()) if path.name.endswith((".csv", ".csv.gz"))]


def unread_files(directory: Path) -> list[str]:
    """Names of CSV files that are no operator's: a slip in a name shall not go unseen."""
    return [path.name for path in _csv_files(directory) if not path.name.startswith(tuple(_PREFIX.values()))]


def _read(path: Path, operator: str, device: Device) -> Table:
    """One file; text columns hold what the models know, 16-bit numbers under one name."""
    table = tables.read(path, operator)
    for column, known in _KNOWN[operator].items():
        _expect(path, column, table[column], np.isin(table[column], known), ", ".join(known))
        if column.endswith("dtype"):
            table[column] = np.array([_SAME.get(name, name) for name in table[column]])
    if operator == "allreduce":
        _expect_messages(path, table, device)
    if operator == "moe":
        _expect_routing(path, table)
    return table


def _expect_messages(path: Path, table: Table, device: Device) -> None:
    """Rows are of this GPU, and those of the library that is fitted say how they were launched."""
    of_device = [name for name in np.unique(table["gpu"]) if _is_device(name, device)]
    _expect(path, "gpu", table["gpu"], np.isin(table["gpu"], of_device), f"rows of {device.id} only")
    _expect(path, "tp", table["tp"], table["tp"] >= 2, "at least 2 GPUs")
    mode = collective.rows_of(table)["mode"]
    _expect(path, "mode", mode, np.isin(mode, ("graph", "eager")), "graph, eager")


def _expect_routing(path: Path, table: Table) -> None:
    """How tokens were spread over experts must be one that `moe.loads_of` can rebuild."""
    known = np.array([_is_routing(name) for name in table["distribution"]])
    _expect(path, "distribution", table["distribution"], known, "balanced or power_law_EXPONENT (above 0, not 1)")
    _expect(path, "topk", table["topk"], table["topk"] <= table["experts"], "at most the number of experts")
    whole = table["experts"] % table["moe_ep"] == 0
    _expect(path, "moe_ep", table["moe_ep"], whole, "a divisor of the number of experts")


def _expect(path: Path, column: str, values: np.ndarray, good: np.ndarray, expected: str) -> None:
    if not good.all():
        bad = values[int(np.argmin(good))]
        raise UserError(f"operator table '{path}', column {column}: found '{bad}', expected {expected}")


def _is_device(name: str, device: Device) -> bool:
    try:
        return load_device(name).id == device.id
    except UserError:
        return False


def _is_routing(name: str) -> bool:
    if name == "balanced":
        return True
    try:
        exponent = float(name.removeprefix("power_law_"))
    except ValueError:
        return False
    return name.startswith("power_law_") and 0.0 < exponent < 10.0 and exponent != 1.0


# -- fitting: one function per operator, which yields a fit, or a sentence on why there is none ---------------------

_L2 = "served by the L2 cache"
Found = Iterator["GroupFit | str"]


def _fit_gemm(table: Table, device: Device, start: Parameters) -> Found:
    for group, dtype in (("gemm16", "bf16"), ("gemm8", "fp8")):
        rows = tables.select(table, table["dtype"] == dtype)
        if not rows["m"].size:
            continue
        # The library's row bucket is the device's, in the fit as in the errors before and after it.
        base = gemm.own_bucket(getattr(start, group), device)
        before = gemm.in_sample(rows, device, base)
        if not before.counted.any():
            yield _nothing(group, before.counted, _L2)
            continue
        solution = gemm.fit(rows, device, base)
        fitted = gemm.fitted(base, solution)
        after = gemm.in_sample(rows, device, fitted)
        errors = (np.log1p(found.relative) for found in (before, after))
        yield _group(group, getattr(start, group), fitted, solution, *errors, before.counted, _L2)


def _attention(phase: str) -> Callable[[Table, Device, Parameters], Found]:
    def fit(table: Table, device: Device, start: Parameters) -> Found:
        rows = attention.rows_of(phase, table, device)
        if not rows.cold.any():
            yield _nothing(phase, rows.cold, _L2 if rows.cold.size else "prompts of one token")
            return
        base = getattr(start, phase)
        solution = attention.fit_rows(phase, [rows], AttentionParameters(prefill=start.prefill, decode=start.decode))
        fitted = attention.parameters(phase, solution, base)
        yield _group(phase, base, fitted, solution, rows.errors(base), rows.errors(fitted), rows.cold, _L2)

    return fit


def _fit_moe(table: Table, device: Device, start: Parameters) -> Found:
    routed = moe.loads_of(table)
    fitted_rows = 0
    for group in moe.classes_of(table, device):
        rows = moe.rows_of(group, table, device, routed)
        fitted_rows += rows.cold.size
        if not rows.cold.any():
            if rows.cold.size:
                yield _nothing(group, rows.cold, _L2)
            continue
        base = getattr(start, group)
        solution = moe.fit_rows([rows], base)
        fitted = moe.parameters(solution, base)
        yield _group(group, base, fitted, solution, rows.errors(base), rows.errors(fitted), rows.cold, _L2)
    left_out = len(table["tokens"]) - fitted_rows
    if left_out:
        yield f"fused experts: {left_out:,} rows not fitted: kernels that no server uses, or routed by groups (moe.py)"


def _fit_collective(table: Table, device: Device, start: Parameters) -> Found:
    rows, base = collective.rows_of(table), start.collective
    if not rows["bytes"].size:
        yield "collective: not fitted, no rows of library vllm with up to 8 GPUs"
        return
    # The limit that is known comes first: where the rows do not tell it, it stays.
    known = (base.custom_limit_byte, base.custom_limit_exponent)
    solution = collective.fit(rows, device, base, (known, *collective.LIMITS))
    fitted = collective.fitted(base, solution)
    before, after = (np.log1p(collective.in_sample(rows, device, p).relative) for p in (base, fitted))
    graph = rows["mode"] != "eager"
    counted = graph if graph.any() else ~graph
    yield _group("collective", base, fitted, solution, before, after, counted, "launched eagerly")


_FITTERS: dict[str, Callable[[Table, Device, Parameters], Found]] = {
    "gemm": _fit_gemm,
    "attention_prefill": _attention("prefill"),
    "attention_decode": _attention("decode"),
    "moe": _fit_moe,
    "allreduce": _fit_collective,
}


def _group(
    group: str, start: Any, fitted: Any, solution: Solution, before: np.ndarray, after: np.ndarray,
    counted: np.ndarray, why_aside: str,
) -> GroupFit:  # fmt: skip
    """Values that were fitted, or that follow from fitted ones, with the errors of the rows that count."""
    old, new = msgspec.structs.asdict(start), msgspec.structs.asdict(fitted)
    values = {name: value for name, value in new.items() if name in solution.values or value != old[name]}
    aside = int(np.sum(~counted))
    return GroupFit(group, values, before[counted], after[counted], aside, why_aside, solution.not_identified)


# -- the screen ----------------------------------------------------------------------------------------------------


def _nothing(group: str, rows: np.ndarray, why: str) -> str:
    return f"{group}: not fitted, all {rows.size:,} rows are {why}" if rows.size else f"{group}: not fitted, only {why}"


def _sentence(fit: GroupFit) -> str:
    """n, median and p90 of |predicted / measured - 1| before and after, and what the rows do not tell."""
    aside = f" ({fit.aside:,} more {fit.why_aside}, not counted)" if fit.aside else ""
    missing = f"; not identified: {', '.join(fit.not_identified)}" if fit.not_identified else ""
    return (
        f"{fit.group}: {fit.after.size:,} rows{aside}, error median {_percent(fit.before)} before, "
        f"{_percent(fit.after)} after{missing}"
    )


def _percent(errors: np.ndarray) -> str:
    found: Mapping[str, float] = attention.summarise(errors)
    return f"{100 * found['median']:.1f}% (p90 {100 * found['p90']:.1f}%)"
