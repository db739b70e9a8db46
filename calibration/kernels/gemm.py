"""Fits of the GEMM model to the measured tables, and its error on weight shapes that a fit has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from calibration.kernels import tables
from calibration.kernels.errors import Errors, line
from calibration.kernels.tables import Table
from calibration.least_squares import Solution, fit_parameters
from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.kernels.gemm import SPECS, GemmParameters, gemm_time

# Scatter of one row that no smooth model explains: tables of the same silicon differ by this much (P5-P95 +-10 %).
SCATTER = 0.06
_WEIGHT_BYTE = {"bf16": 2.0, "fp8": 1.0}
_SERVING = ("swizzle_columns", "skinny_rows", "skinny_vector_fraction")  # tables hardly tell them: large L2
_NEVER_16 = (*_SERVING, "bucket_rows", "quantise_start_s", "quantise_fraction", "quantise_row_s", "dequantise_fraction")
_NEVER_8 = (*_SERVING, "bucket_rows", "split_s", "inner_latency_s", "skinny_gain", "dequantise_fraction")


def start_16(device: Device) -> GemmParameters:
    """Where a fit of 16-bit arithmetic starts: its prior medians."""
    return GemmParameters()


def start_8(device: Device) -> GemmParameters:
    """Where a fit of 8-bit arithmetic starts.

    vLLM's CUTLASS kernels choose the tile by the number of rows: the wide tile begins above 128 rows on Hopper and
    above 256 elsewhere, as the steps in the m-sweeps of the tables show.
    """
    return GemmParameters(
        bucket_rows=128.0 if device.architecture == "hopper" else 256.0,
        wave_share=0.9, tile_overhead=4.0, inner_overhead=800.0, inner_latency_s=1e-13, skinny_gain=1.001,
    )  # fmt: skip


def load(gpu: str, dtype: str) -> Table:
    """Rows of the bundled GEMM table of `gpu` with `dtype` "bf16" or "fp8". UserError if there are none."""
    table = tables.load("gemm", gpu)
    chosen = table["dtype"] == dtype
    if not chosen.any():
        raise UserError(f"GEMM table of '{gpu}': found no {dtype} rows, only {', '.join(np.unique(table['dtype']))}")
    return tables.select(table, chosen)


def predict(rows: Mapping[str, np.ndarray], device: Device, p: GemmParameters) -> np.ndarray:
    """Seconds of every row; all rows must have one dtype."""
    dtype = str(rows["dtype"][0])
    activation = "fp8" if dtype == "fp8" else "bf16"
    time = gemm_time(
        rows["m"], rows["k"], rows["n"], weight_byte=_WEIGHT_BYTE[dtype], activation=activation, device=device, p=p
    )
    return time.seconds


def fit(
    rows: Mapping[str, np.ndarray] | Sequence[tuple[Mapping[str, np.ndarray], Device]],
    device: Device | None = None,
    start: GemmParameters | None = None,
) -> Solution:
    """Parameters of one arithmetic class of one GPU, or of several (`rows` a list of (rows, device)) jointly.

    Rows that profit from the L2 are left out. `start` holds the prior medians (default: `start_16` or `start_8`).
    Every GPU counts the same, whatever the number of its rows.
    """
    parts = [(rows, device)] if isinstance(rows, Mapping) else list(rows)
    cold = [(tables.select(table, ~tables.gemm_l2_hot(table, gpu)), gpu) for table, gpu in parts]
    eight_bit = str(cold[0][0]["dtype"][0]) == "fp8"
    start = start or (start_8 if eight_bit else start_16)(cold[0][1])
    measured = [np.log(table["latency_s"]) for table, _ in cold]
    scatter = [SCATTER * np.sqrt(len(m) * len(cold) / sum(map(len, measured))) for m in measured]
    never = _NEVER_8 if eight_bit else _NEVER_16

    def errors(values: dict[str, float]) -> np.ndarray:
        p = msgspec.structs.replace(start, **values)
        return np.concatenate([
            (np.log(predict(table, gpu, own_bucket(p, gpu))) - log_s) / sd
            for (table, gpu), log_s, sd in zip(cold, measured, scatter)
        ])  # fmt: skip

    free = {name: getattr(start, name) for name in SPECS if name not in never}
    return fit_parameters(free, SPECS, errors)


def fitted(start: GemmParameters, solution: Solution) -> GemmParameters:
    """`start` with the fitted values in place."""
    return msgspec.structs.replace(start, **solution.values)


def own_bucket(p: GemmParameters, device: Device) -> GemmParameters:
    """The library's row bucket belongs to the device, also in a joint fit."""
    if p.bucket_rows == 0.0:
        return p
    return msgspec.structs.replace(p, bucket_rows=start_8(device).bucket_rows)


def held_out(
    rows: Mapping[str, np.ndarray], device: Device, start: GemmParameters | None = None, folds: int = 5
) -> Errors:
    """Errors of every row under a fit that saw no row with the same weight shape (n, k); deterministic."""
    from sklearn.model_selection import GroupKFold

    start = start or (start_8 if str(rows["dtype"][0]) == "fp8" else start_16)(device)
    shape = np.unique(np.stack((rows["n"], rows["k"])), axis=1, return_inverse=True)[1].ravel()
    relative = np.empty(len(shape))
    for seen, unseen in GroupKFold(folds).split(shape, groups=shape):
        p = fitted(start, fit(tables.select(rows, seen), device, start))
        relative[unseen] = predict(tables.select(rows, unseen), device, p) / rows["latency_s"][unseen] - 1.0
    return Errors(relative, ~tables.gemm_l2_hot(rows, device))


def in_sample(rows: Mapping[str, np.ndarray], device: Device, p: GemmParameters) -> Errors:
    """Errors of every row under given parameters."""
    relative = predict(rows, device, p) / rows["latency_s"] - 1.0
    return Errors(relative, ~tables.gemm_l2_hot(rows, device))


def main() -> None:
    """Print the fitted parameters and the errors of every table (`python -m calibration.kernels.gemm`)."""
    for gpu in tables.GPUS:
        for dtype in ("bf16", "fp8"):
            if (gpu, dtype) == ("a100-sxm-80gb", "fp8"):
                continue
            device, rows = load_device(gpu), load(gpu, dtype)
            start = (start_8 if dtype == "fp8" else start_16)(device)
            solution = fit(rows, device, start)
            inside, outside = in_sample(rows, device, fitted(start, solution)), held_out(rows, device, start)
            for name, errors in (("in-sample", inside), ("held out", outside)):
                print(gpu, dtype, name, line(errors.summary()), "| with L2-hot rows", line(errors.summary(True)))
            print("   ", "  ".join(f"{k}={v:.3g}" for k, v in solution.values.items()), solution.not_identified)


if __name__ == "__main__":
    main()
