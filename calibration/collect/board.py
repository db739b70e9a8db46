"""Whether the board in the machine is the one to measure: that of the data sheet, and the same as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.device import Device
from simulator.errors import UserError

LIMIT_TOLERANCE = 0.05  # of a power limit against the data sheet: less is rounding
# What a measurement may not go on with when it has changed, and what is only said.
SAME = ("name", "vbios", "power_limit_w", "ecc", "mig", "power_mode")
SAID = ("driver_version", "persistence_mode", "application_sm_clock_hz", "min_sm_clock_hz", "max_sm_clock_hz")


def check_board(device: Device, found: Mapping[str, Any]) -> list[str]:
    """Warnings where the board in the machine may not be the one of the data sheet.

    UserError when a Jetson is in another power mode than the one that is asked for.
    """
    warnings = []
    mode = found.get("jetson", {}).get("power_mode")
    if mode and device.power_modes and _mode_id(device, mode) != device.power_mode:
        raise UserError(
            f"the board is in power mode {mode}, expected {device.power_mode}; set it, or give --power-mode"
        )
    for gpu in found.get("gpus", []):
        name, capability = gpu.get("name"), gpu.get("compute_capability")
        if capability and device.compute_capability and capability != device.compute_capability:
            warnings.append(f"the GPU is '{name}' of compute capability {capability}, the data sheet {device.id} is of "
                            f"{device.compute_capability}")  # fmt: skip
        limit_w = gpu.get("power_limit_w")
        if limit_w and abs(limit_w / device.power.limit_w - 1.0) > LIMIT_TOLERANCE:
            warnings.append(
                f"the GPU's power limit is {limit_w:.0f} W, the data sheet says {device.power.limit_w:.0f} W"
            )
        if gpu.get("mig"):
            warnings.append("the GPU is split by MIG: what is measured is not the GPU of the data sheet")
    if found.get("jetson", {}).get("clocks_locked") is False:
        warnings.append("clocks are not locked (jetson_clocks): they follow the load, and short runs come out slow")
    if "jetson" in found and device.power_modes and not mode:
        warnings.append(
            f"the board does not tell its power mode, which is taken to be {device.power_mode}; a container needs "
            "/etc/nvpmodel.conf and /var/lib/nvpmodel of the host"
        )
    return list(dict.fromkeys(warnings))


def _mode_id(device: Device, mode: str) -> str:
    """The sheet's name of a mode; the board's own where the sheet does not know it."""
    try:
        return device.find_mode(mode).name
    except UserError:
        return mode


def check_same_board(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Warnings where the board is not as it was when the measurement began; both are what `provenance.board` gave.

    UserError where later points would be of another machine. What is known at one of the times only is not compared.
    """
    warnings = []
    pairs = list(zip(before.get("gpus", []), now.get("gpus", [])))
    if "jetson" in before and "jetson" in now:
        pairs.append((before["jetson"], now["jetson"]))
    for then, found in pairs:
        for name in (*SAME, *SAID):
            old, new = then.get(name), found.get(name)
            if None in (old, new) or old == new:
                continue
            text = f"the board's {name} was {old} when this measurement began, now it is {new}"
            if name in SAME:
                raise UserError(f"{text}; set it back, or give another --out")
            warnings.append(text)
    return list(dict.fromkeys(warnings))
