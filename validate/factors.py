"""Constant factors between two figures, and what they are usually made of: units, clocks, counts of devices, types.

A figure that is off by a constant is rarely off by chance: two views of one quantity whose ratio is the same at every
point differ in a unit, a clock domain, a number of devices or a definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.setup import Setup

# Two views are in constant ratio when their ratios scatter by less than this (TAXONOMY C2), and the ratio is another
# than 1 when it is off by this many noise floors and standard errors.
MAX_CV = 0.03
MARGIN = 3.0
DEFAULT_TOLERANCE = 0.01  # relative, of a sharp view; between a model and a measurement the model's own error
# Shares of the tolerance: factors this much further off than the nearest are named with it, and how much nearer a rare
# one must be than a common one.
_SAME_DISTANCE, _RARE_DISTANCE = 0.5, 0.3
_RARE = ("KiB", "MiB", "GiB", "GPU clock of mode", "memory clock of mode")

UNITS: tuple[tuple[float, str], ...] = (
    (1000.0, "thousand: ms for s, mW for W, kB for B"),
    (1e6, "million: us for s, MB for B"),
    (3600.0, "hours for seconds, Wh for J"),
    (60.0, "minutes for seconds"),
    (1024.0, "KiB for B"),
    (1.024, "KiB for kB"),
    (1.048576, "MiB for MB"),
    (1.073741824, "GiB for GB"),
    (8.0, "bits for bytes"),
    (2.0, "sparse for dense peak, 16 for 8 bit, 2-byte elements for bytes, both directions of a link"),
)


def known_factors(
    setup: Setup | None = None, clocks: Mapping[str, float] | None = None, modes: bool = True
) -> list[tuple[float, str]]:
    """(factor, what it would be) above 1; those of a configuration and of named clock ratios first.

    clocks: ratios of clocks in play by name; a divider that was rounded up leaves k / ceil(k). modes: whether clocks of
    the device's other power modes count, which do not scale power.
    """
    found: list[tuple[float, str]] = []
    for name, ratio in (clocks or {}).items():
        found += [(ratio, name), (ratio / math.ceil(ratio), f"{name}, its divider rounded up to {math.ceil(ratio)}")]
    if setup is not None:
        found += _of_setup(setup) + (_of_modes(setup) if modes else [])
    found += UNITS
    above = [(max(value, 1.0 / value), name) for value, name in found if value > 0.0 and value != 1.0]
    return list(dict.fromkeys(above))


def _of_setup(setup: Setup) -> list[tuple[float, str]]:
    parallel, n = setup.parallel, setup.output_tok
    counts = [
        (parallel.tp, "tensor-parallel devices"), (parallel.pp, "pipeline stages"), (parallel.dp, "replicas"),
        (parallel.world_size, "devices: per device for all of them"),
    ]  # fmt: skip
    out = [(float(count), f"{name} ({count})") for count, name in counts if count > 1]
    if n > 1:
        out.append((n / (n - 1.0), f"(n - 1)/n of {n} output tokens"))
    return out


def _of_modes(setup: Setup) -> list[tuple[float, str]]:
    """Clocks of the device's other power modes over those of the mode in force."""
    out: list[tuple[float, str]] = []
    mode, modes = setup.device.power_mode, setup.device.power_modes
    now = next((m for m in modes if m.name == mode), None)
    for other in modes if now else ():
        if other.gpu_clock_hz != now.gpu_clock_hz:
            out.append((other.gpu_clock_hz / now.gpu_clock_hz, f"GPU clock of mode {other.name} for that of {mode}"))
        if other.memory_clock_hz != now.memory_clock_hz:
            ratio = other.memory_clock_hz / now.memory_clock_hz
            out.append((ratio, f"memory clock of mode {other.name} for that of {mode}"))
    return out


def factor_name(
    ratio: float,
    setup: Setup | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    clocks: Mapping[str, float] | None = None,
    modes: bool = True,
) -> str | None:
    """What a ratio, or its inverse, is made of: "1/1000 (thousand: ms for s, ...)"; None when nothing known fits.

    tolerance: relative error of the ratio. A factor within two tolerances of 1 cannot be told from agreement and is
    not named. Factors that fit about as well as the nearest are named together, those of the configuration first.
    clocks, modes: as for `known_factors`.
    """
    if not (math.isfinite(ratio) and ratio > 0.0):
        return None
    log = abs(math.log(ratio))
    near = []
    for index, (value, name) in enumerate(known_factors(setup, clocks, modes)):
        off = abs(math.log(value) - log)
        if off <= tolerance and math.log(value) > 2.0 * tolerance:
            near.append((off + _RARE_DISTANCE * tolerance * name.startswith(_RARE), index, value, name))
    if not near:
        return None
    near.sort()
    value = near[0][2]
    names = "; or ".join(name for off, _, _, name in near if off <= near[0][0] + _SAME_DISTANCE * tolerance)
    if ratio > 1.0:
        return f"{value:.6g} ({names})"
    return f"1/{value:.0f} ({names})" if value == round(value) else f"{1.0 / value:.4g} ({names})"


@dataclass(frozen=True)
class RatioOfViews:
    """Ratio of two views of one quantity, a / b, over the points that both have.

    verdict: "equal", "constant" (a constant other than 1), "scattered", or "unverifiable" without two common points.
    cv: standard deviation / mean of the ratios; name: `factor_name` of a constant one.
    """

    verdict: str
    n: int
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    cv: float = math.nan
    name: str | None = None


def constant_ratio(
    view_a: Sequence[float | None] | None,
    view_b: Sequence[float | None] | None,
    noise: float = 0.0,
    setup: Setup | None = None,
    clocks: Mapping[str, float] | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> RatioOfViews:
    """Hold two views of one quantity against each other, point by point.

    noise: relative spread of repeats. Equal within `MARGIN` noise floors or 1 %, whichever is more; constant when the
    ratios scatter by less than `MAX_CV`. A view that is missing makes it unverifiable, never equal.
    """
    if view_a is None or view_b is None:
        return RatioOfViews("unverifiable", 0)
    pairs = [(a, b) for a, b in zip(view_a, view_b, strict=True) if _positive(a) and _positive(b)]
    if len(pairs) < 2:
        return RatioOfViews("unverifiable", len(pairs))
    ratios = np.array([a / b for a, b in pairs])
    ratio, cv = float(np.median(ratios)), float(ratios.std(ddof=1) / ratios.mean())
    facts = {"n": len(pairs), "ratio": ratio, "low": float(ratios.min()), "high": float(ratios.max()), "cv": cv}
    error = cv / math.sqrt(len(pairs))
    if cv >= MAX_CV:
        return RatioOfViews("scattered", **facts)
    if abs(math.log(ratio)) <= max(MARGIN * noise, MARGIN * error, tolerance):
        return RatioOfViews("equal", **facts)
    return RatioOfViews("constant", **facts, name=factor_name(ratio, setup, tolerance, clocks))


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0.0
