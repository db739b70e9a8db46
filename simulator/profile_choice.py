"""Which calibration profile a device gets, and how it is brought to the device's clocks and board size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.parameters import flatten, with_values
from simulator.profile import Calibration, read_profile, read_toml
from simulator.profile_parts import (
    HOST_TIMES,
    EngineFamily,
    compose,
    engine_families,
    engine_family,
    is_async,
    kernels_for,
    profiles_directory,
)


def load_calibration(
    device: Device, path: str | None = None, engine: str | None = None, version: str | None = None
) -> Calibration:
    """The calibration of a device under an engine (default: the newest vLLM), at the device's clocks.

    In this order: the file given; a profile fitted on this GPU with this engine family; on a board whose host is its
    own (Jetson), one fitted with another version of the engine; a sibling's that `transfer.toml` names; else kernel
    ceilings (of this GPU's runs with other engines, of its operator tables, of its family) put together with the
    engine's overheads (`simulator.profile_parts`). File names decide, so that no profile is opened in vain.
    """
    return at_device(_find_calibration(device, path, engine, version), device)


def _find_calibration(device: Device, path: str | None, engine: str | None, version: str | None) -> Calibration:
    if path is not None:
        profile = read_profile(Path(path))
        if profile.gpu not in (None, device.id):
            raise UserError(
                f"{path}: the profile is for '{profile.gpu}', expected one for '{device.id}' or one without gpu"
            )
        return profile
    folder = profiles_directory()
    family, stand_in = engine_family(engine, version)
    found = None if stand_in else _fitted(folder, device, device.id, family)
    if found is not None:
        profile = msgspec.structs.replace(read_profile(found), async_scheduling=is_async(family, version))
        return profile if _is_bundled(device) else _borrowed(profile, EDITED_SHEET, _transfer_table(folder))
    sibling = None if stand_in else _transferred(device, folder, family)
    if sibling is not None:
        return sibling
    others = _profiles_of(folder, device.id, None)
    seen = read_profile(others[0]) if others and kernels_for(device).id != device.id and _is_bundled(device) else None
    return compose(device, engine, version, seen=seen)


def _profiles_of(folder: Path, gpu: str, engine: str | None) -> list[Path]:
    """Profiles fitted on a GPU, of the families of one engine or of all; those of newer versions first."""
    ids = [family.id for family in engine_families() if engine in (None, family.engine)]
    return [path for path in (folder / f"{gpu}.{name}.toml" for name in ids) if path.exists()]


def _fitted(folder: Path, device: Device, gpu: str, family: EngineFamily) -> Path | None:
    """The profile of `gpu` for a family; on boards with hosts of their own also that of another version."""
    own = folder / f"{gpu}.{family.id}.toml"
    if own.exists():
        return own
    if kernels_for(device).host_factor == 1.0:
        return None
    return next(iter(_profiles_of(folder, gpu, family.engine)), None)


def at_device(profile: Calibration, device: Device) -> Calibration:
    """Parameters that follow clocks and board size, brought from where they were fitted to `device` as it is set.

    Host times go with the CPU clock, starts of kernels with the GPU clock. Busy power goes with multiprocessors x GPU
    clock from the fitted GPU in its default mode (voltage is not known and left out); defaults go with the boards'
    power limits first. Fractions of peaks and of bandwidth need no scaling: power modes change the peaks themselves.
    """
    origin = profile.gpu or profile.reference_gpu
    reference = load_device(origin) if origin not in (None, device.id) else _in_default_mode(device)
    own = _in_default_mode(device)
    values = flatten(profile.parameters)
    busy_from = reference
    if profile.gpu is None:
        values["power.busy_w"] *= own.power.limit_w / reference.power.limit_w
        busy_from = own
    values["power.busy_w"] *= _silicon(device) / _silicon(busy_from) if device.power_modes else 1.0
    if device.power_modes and profile.gpu is not None:
        for name in (name for name in values if name.endswith(("start_s", "small_kernel_s"))):
            values[name] *= reference.compute.clock_hz / device.compute.clock_hz
    then, now = _cpu_clock_hz(reference), _cpu_clock_hz(device)
    if then and now:
        for name in HOST_TIMES:
            values[f"engine.{name}"] *= then / now
    return msgspec.structs.replace(profile, parameters=with_values(profile.parameters, values))


def _in_default_mode(device: Device) -> Device:
    return device.at_mode(device.default_power_mode) if device.default_power_mode else device


def _silicon(device: Device) -> float:
    return device.compute.sm_count * device.compute.clock_hz


def _cpu_clock_hz(device: Device) -> float | None:
    return device.find_mode(device.power_mode).cpu_clock_hz if device.power_mode else None


EDITED_SHEET = "this data sheet has its id but other figures"


def _is_bundled(device: Device) -> bool:
    """Whether the device's figures are those of the bundled sheet of its id (a user's copy may differ)."""
    bundled = load_device(device.id, device.power_mode)
    return all(getattr(device, part) == getattr(bundled, part) for part in ("memory", "compute", "power"))


def _transfer_table(folder: Path) -> dict[str, Any]:
    return read_toml(folder / "transfer.toml")


def _transferred(device: Device, folder: Path, family: EngineFamily) -> Calibration | None:
    """A sibling's profile with wider spreads, if `transfer.toml` names one and it has a profile of the engine."""
    table = _transfer_table(folder)
    entry = table["from"].get(device.id)
    found = entry and _fitted(folder, device, entry["gpu"], family)
    if not found:
        return None
    return msgspec.structs.replace(_borrowed(read_profile(found), entry["why"], table), idle_w=None)


def _borrowed(profile: Calibration, why: str, table: dict[str, Any]) -> Calibration:
    """A profile used on another device than it was fitted on: wider, and it says so."""
    wider = {kind: math.hypot(sd, table["log_sd"]) for kind, sd in profile.log_sd.items()}
    return msgspec.structs.replace(profile, log_sd=wider, transferred=why)
