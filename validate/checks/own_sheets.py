"""A user's own data sheet against those that ship: figures of another module, sparse peaks, a copied memory size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import median

from simulator.device import Device, list_devices, load_device
from simulator.errors import UserError
from validate.cases import Case
from validate.finding import Finding

# Boards of one name differ by clocks and memory grades; half or twice as much is another board or another figure.
ANOTHER_BOARD = 1.5
# Operations per multiprocessor and clock are a constant of an architecture, and sparse peaks are twice the dense ones.
SPARSE = 1.8
_UNITS = {"memory.bandwidth_byte_per_s": (1e9, "GB/s"), "memory.capacity_byte": (2.0**30, "GiB")}


def own_sheets(cases: Sequence[Case]) -> Iterator[Finding]:
    """Warnings for sheets that runs name by path."""
    users: dict[str, list[str]] = {}
    for case in cases:
        if case.record.gpu.lower().endswith(".toml") or "/" in case.record.gpu:
            users.setdefault(case.record.gpu, []).append(case.id)
    for path, runs in users.items():
        device = _load(path)
        if device is not None:
            known = _shipped(device)
            yield from (_from_known(device, known, runs) if known else _against_kin(device, runs))


def _load(name: str) -> Device | None:
    try:
        return load_device(name)
    except UserError:
        return None


@lru_cache(maxsize=1)
def _all() -> tuple[Device, ...]:
    return tuple(list_devices())


def _shipped(device: Device) -> Device | None:
    """The sheet that ships under the same id, name or alias."""
    names = (device.id, device.name, *device.aliases)
    return next((found for found in map(_load, names) if found is not None), None)


def _figures(device: Device) -> dict[str, float]:
    peaks = device.compute.peak_flop_per_s
    return {
        "memory.bandwidth_byte_per_s": device.memory.bandwidth_byte_per_s,
        "memory.capacity_byte": float(device.memory.capacity_byte),
        "power.limit_w": device.power.limit_w,
        **{f"compute.peak_flop_per_s.{dtype}": peak for dtype, peak in peaks.items()},
    }


def _from_known(device: Device, known: Device, runs: Sequence[str]) -> Iterator[Finding]:
    theirs = _figures(known)
    for name, value in _figures(device).items():
        ratio = value / theirs[name] if name in theirs else 1.0
        if max(ratio, 1.0 / ratio) >= ANOTHER_BOARD:
            twice = "; a sparse peak is twice the dense one" if name.startswith("compute.peak") and ratio > 1.0 else ""
            yield _finding(
                "data_sheet", runs, name, value, theirs[name],
                f"the sheet of '{device.id}' gives {name} = {_shown(name, value)}, the one that ships for {known.id} "
                f"{_shown(name, theirs[name])} (ratio {ratio:.2f}){twice}",
            )  # fmt: skip


def _against_kin(device: Device, runs: Sequence[str]) -> Iterator[Finding]:
    """Peaks per multiprocessor and clock against those of the same architecture and compute capability."""
    same = (device.architecture, device.compute_capability, device.form_factor == "module")
    kin = [d for d in _all() if (d.architecture, d.compute_capability, d.form_factor == "module") == same]
    for dtype, peak in device.compute.peak_flop_per_s.items():
        others = [d.compute.peak_flop_per_s[dtype] / _rate(d) for d in kin if dtype in d.compute.peak_flop_per_s]
        if others and (ratio := peak / _rate(device) / median(others)) >= SPARSE:
            yield _finding(
                "sparse_peak", runs, f"compute.peak_flop_per_s.{dtype}", peak, peak / ratio,
                f"the sheet of '{device.id}' gives {peak / 1e12:,.4g} TFLOP/s in {dtype}, {ratio:.2f} times what its "
                f"{device.compute.sm_count} multiprocessors do at {device.compute.clock_hz / 1e9:.3g} GHz in other "
                f"sheets of {device.architecture}: the sparse peak?",
            )  # fmt: skip


def _rate(device: Device) -> float:
    return device.compute.sm_count * device.compute.clock_hz


def _shown(name: str, value: float) -> str:
    factor, unit = _UNITS.get(name, (1e12, "TFLOP/s") if name.startswith("compute.peak") else (1.0, "W"))
    return f"{value / factor:,.4g} {unit}"


def _finding(name: str, runs: Sequence[str], field: str, value: float, expected: float, says: str) -> Finding:
    return Finding(
        check=f"configuration.{name}", layer="configuration", fault="F1", severity="warn", confidence="likely",
        runs=tuple(runs), also=("F2",), says=says,
        evidence={"field": field, "found": value, "expected": expected, "ratio": value / expected},
        next="look the figure up in the maker's data sheet of this very module: dense peak, its own memory",
    )  # fmt: skip
