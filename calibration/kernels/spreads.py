"""How far a file of kernels is to be trusted: spreads of times from held-out errors and from carrying fits over.

A ledger is what `report.operator_ledger` returns; biases are `build.transfer_bias` by GPU. Spreads are standard
deviations of log(measured / predicted).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from calibration.kernels import gemm

# What the times of a file rest on: the GPU's own tables, those of siblings or of one, a judgement, or all GPUs.
RestsOn = Literal["own", "siblings", "one sibling", "none", "any"]

# Two tables of the same silicon differ by this much (README of the tables): no fit to one of them is closer to another
# board of its kind.
TABLE_SD = gemm.SCATTER
# The operators that make up a decode step and a prefill, of which a kind of spread is the root mean square.
KINDS = {"tpot": ("gemm16", "gemm8", "decode", "moe16"), "ttft": ("gemm16", "gemm8", "prefill", "moe16")}


def own_spread(ledger: Iterable[Mapping[str, Any]], gpus: Sequence[str], kind: str) -> float:
    """Root mean square, over GPUs and operators, of the median held-out error of single shapes; at least TABLE_SD.

    The median, not the standard deviation, of a shape's error: a step adds up several shapes.
    """
    groups = KINDS[kind]
    measured = _rms(row["held_median"] for row in ledger if row["gpu"] in gpus and row["group"] in groups)
    return max(TABLE_SD, measured)


def transfer_spread(biases: Mapping[str, Mapping[str, Mapping[str, float]]], how: str, kind: str) -> float:
    """Root mean square of the biases of `transfer_bias`, over GPUs and operators; how: "siblings" or "others"."""
    groups = KINDS[kind]
    return _rms(value for found in biases.values() for group, value in found[how].items() if group in groups)


def _rms(values: Iterable[float]) -> float:
    return float(np.sqrt(np.mean(np.square(list(values)))))


# A GPU that no table represents may differ more from all measured ones than these do from each other.
_BEYOND = 1.5


def time_spreads(
    rests_on: RestsOn, gpus: Sequence[str], ledger: Sequence[Mapping[str, Any]], biases: Mapping[str, Any]
) -> dict[str, float]:
    """log_sd of times of a file fitted on `gpus`: errors on unseen shapes, and in quadrature the bias of carrying a
    fit to another GPU.

    siblings: measured between H100 and H200. none: measured by leaving whole families out. One sibling: between the
    two (their geometric mean), any: `_BEYOND` times the latter; both judgements.
    """
    out = {}
    for kind in KINDS:
        shapes = own_spread(ledger, gpus, kind)
        if rests_on == "own":
            out[kind] = shapes
            continue
        near, far = (transfer_spread(biases, how, kind) for how in ("siblings", "others"))
        bias = {"siblings": near, "one sibling": math.sqrt(near * far), "none": far, "any": _BEYOND * far}[rests_on]
        out[kind] = math.hypot(shapes, bias)
    return {"time": max(out.values()), **out}
