"""Fits of the all-reduce model to the measured tables, and its error on message sizes that a fit has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as with_values

import msgspec
import numpy as np

from calibration.kernels import tables
from calibration.kernels.errors import Errors, line
from calibration.kernels.tables import Table
from calibration.least_squares import Solution, fit_parameters
from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.kernels.collective import (
    SPECS,
    CollectiveParameters,
    all_reduce_time,
    reduces_in_switch,
    through_host,
)

SCATTER = 0.08  # of one row around the model: repeated sizes and modes of one library differ by this much
# Limits of the custom kernel that a fit tries; least squares cannot move a threshold. vLLM's own limits lie among them.
LIMITS_BYTE = (0.4e6, 0.75e6, 1.5e6, 3e6, 6e6, 12e6, 24e6)
LIMIT_EXPONENTS = (0.0, 0.75, 1.5)
LIMITS = tuple((limit, exponent) for exponent in LIMIT_EXPONENTS for limit in LIMITS_BYTE)
_EAGER = ("eager_floor_s", "eager_copy_fraction")


def load(gpu: str, mode: str | None = None, library: str = "vllm") -> Table:
    """Rows of the bundled all-reduce table of one GPU and library; `mode` "graph", "eager" or None for both."""
    rows = rows_of(tables.load("allreduce", gpu), library)
    if mode is not None:
        rows = tables.select(rows, rows["mode"] == mode)
    if not rows["bytes"].size:
        raise UserError(f"all-reduce table of '{gpu}': found no {mode or ''} rows of library '{library}'")
    return rows


def rows_of(table: Mapping[str, np.ndarray], library: str = "vllm") -> Table:
    """The rows of a table that the model is about: one library, GPUs of one server (up to 8)."""
    return tables.select(table, (table["library"] == library) & (table["tp"] <= 8))


def predict(rows: Mapping[str, np.ndarray], device: Device, p: CollectiveParameters) -> np.ndarray:
    """Seconds of every row."""
    seconds = np.empty(len(rows["bytes"]))
    for world_size in np.unique(rows["tp"]):
        for graph in (True, False):
            chosen = (rows["tp"] == world_size) & ((rows["mode"] == "eager") != graph)
            seconds[chosen] = all_reduce_time(rows["bytes"][chosen], int(world_size), device, p, graph)
    return seconds


Parts = Sequence[tuple[Mapping[str, np.ndarray], Device]]


def fit(
    rows: Mapping[str, np.ndarray] | Parts,
    device: Device | None = None,
    start: CollectiveParameters | None = None,
    limits: Sequence[tuple[float, float]] = LIMITS,
) -> Solution:
    """Parameters of one GPU, or of several (`rows` a list of (rows, device)) jointly.

    The custom kernel's limit is searched over the pairs `limits` (bytes, exponent), the first of equally good ones
    wins, and reported among the values.
    """
    parts = [(rows, device)] if isinstance(rows, Mapping) else list(rows)
    start = start or CollectiveParameters()
    best: tuple[float, Solution] | None = None
    for limit, exponent in limits:
        own = {"custom_limit_byte": limit, "custom_limit_exponent": exponent}
        cost, solution = _fit_at_limit(parts, msgspec.structs.replace(start, **own))
        if best is None or cost < best[0]:
            best = cost, with_values(solution, values={**solution.values, **own})
    assert best is not None
    return best[1]


def _fit_at_limit(parts: Parts, start: CollectiveParameters) -> tuple[float, Solution]:
    """Mean absolute logarithmic error, and the fit, with the limit of `start`."""
    log_s = np.concatenate([np.log(table["latency_s"]) for table, _ in parts])

    def errors(values: dict[str, float]) -> np.ndarray:
        p = msgspec.structs.replace(start, **values)
        return (np.log(np.concatenate([predict(table, gpu, p) for table, gpu in parts])) - log_s) / SCATTER

    never = set.intersection(*(_never(table, gpu) for table, gpu in parts))
    free = {name: getattr(start, name) for name in SPECS if name not in never}
    solution = fit_parameters(free, SPECS, errors, max_evaluations=25)
    return float(np.abs(errors(solution.values)).mean()), solution


def _never(rows: Mapping[str, np.ndarray], device: Device) -> set[str]:
    """Parameters that these rows on this device say nothing about."""
    never = {"custom_limit_byte", "custom_limit_exponent"}
    if not np.any(rows["mode"] == "eager"):
        never.update(_EAGER)
    if through_host(device, 4):
        never.update(("rank_s", "two_shot_s"))
    else:
        never.update(("host_fraction", "host_exponent"))
    if not reduces_in_switch(device):
        never.update(("switch_start_s", "switch_fraction"))
    return never


def fitted(start: CollectiveParameters, solution: Solution) -> CollectiveParameters:
    """`start` with the fitted values in place."""
    return msgspec.structs.replace(start, **solution.values)


def held_out(
    rows: Mapping[str, np.ndarray], device: Device, start: CollectiveParameters | None = None, folds: int = 5
) -> Errors:
    """Errors of every row under a fit that saw no row with the same message size; deterministic."""
    from sklearn.model_selection import GroupKFold

    start = start or CollectiveParameters()
    size = rows["bytes"]
    relative = np.empty(len(size))
    for seen, unseen in GroupKFold(folds).split(size, groups=size):
        p = fitted(start, fit(tables.select(rows, seen), device, start))
        relative[unseen] = predict(tables.select(rows, unseen), device, p) / rows["latency_s"][unseen] - 1.0
    return Errors(relative, rows["mode"] != "eager")


def in_sample(rows: Mapping[str, np.ndarray], device: Device, p: CollectiveParameters) -> Errors:
    """Errors of every row under given parameters; `counted` are the rows replayed from a graph."""
    return Errors(predict(rows, device, p) / rows["latency_s"] - 1.0, rows["mode"] != "eager")


def main() -> None:
    """Print the fitted parameters and the errors of every GPU (`python -m calibration.kernels.collective`)."""
    for gpu in (*tables.GPUS, "b300-sxm", "gb200", "gb300"):
        device, rows, start = load_device(gpu), load(gpu), CollectiveParameters()
        solution = fit(rows, device, start)
        for name, errors in (
            ("in-sample", in_sample(rows, device, fitted(start, solution))),
            ("held out", held_out(rows, device, start)),
        ):
            print(gpu, name, "graph", line(errors.summary()), "| graph and eager", line(errors.summary(True)))
        print("   ", "  ".join(f"{k}={v:.3g}" for k, v in solution.values.items()), solution.not_identified)


if __name__ == "__main__":
    main()
