"""Which calibration profile a device gets, and how it is brought to the device's clocks and board size."""

from __future__ import annotations

import importlib.util
import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.profile import Calibration, Parameters, read_profile


def profiles_directory() -> Path:
    """Folder of the profiles that ship; data files beside the code that fits them."""
    spec = importlib.util.find_spec("calibration")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "profiles"


def load_calibration(device: Device, path: str | None = None, engine: str = "vllm") -> Calibration:
    """The profile for a device: the file given, else one fitted on this GPU, else one of its siblings', else defaults.

    File names decide, so that no profile is opened in vain: `<gpu>.<engine>.toml` (any engine's if this engine has
    none), then what `transfer.toml` names, then `default-jetson.toml` for boards with unified memory,
    `default-<architecture>-<compute capability>.toml`, `default-<architecture>.toml`, `default.toml`. Parameters that
    follow clocks are scaled to the device's power mode.
    """
    return at_device(_find_calibration(device, path, engine), device)


def _find_calibration(device: Device, path: str | None, engine: str) -> Calibration:
    if path is not None:
        profile = read_profile(Path(path))
        if profile.gpu not in (None, device.id):
            raise UserError(
                f"{path}: the profile is for '{profile.gpu}', expected one for '{device.id}' or one without gpu"
            )
        return profile
    folder = profiles_directory()
    own = [folder / f"{device.id}.{engine}.toml", *sorted(folder.glob(f"{device.id}.*.toml"))]
    for candidate in own:
        if candidate.exists():
            profile = read_profile(candidate)
            return profile if _is_bundled(device) else _borrowed(profile, EDITED_SHEET, _transfer_table(folder))
    sibling = _transferred(device, folder)
    if sibling is not None:
        return sibling
    return family_defaults(device)


def at_device(profile: Calibration, device: Device) -> Calibration:
    """Parameters that follow clocks and board size, brought from where they were fitted to `device` as it is set.

    Host times go with the CPU clock. Busy power goes with multiprocessors x GPU clock from the fitted GPU in its
    default mode (voltage is not known and left out); a family's defaults go with the boards' power limits first.
    Fractions of peaks and of bandwidth need no scaling: power modes change the peaks themselves.
    """
    origin = profile.gpu or profile.reference_gpu
    reference = load_device(origin) if origin not in (None, device.id) else _in_default_mode(device)
    own = _in_default_mode(device)
    values = msgspec.structs.asdict(profile.parameters)
    busy_from = reference
    if profile.gpu is None:
        values["busy_w"] *= own.power.limit_w / reference.power.limit_w
        busy_from = own
    values["busy_w"] *= _silicon(device) / _silicon(busy_from) if device.power_modes else 1.0
    then, now = _cpu_clock_hz(reference), _cpu_clock_hz(device)
    if then and now:
        for name in ("eager_launch_s", "step_host_s", "sequence_host_s"):
            values[name] *= then / now
    return msgspec.structs.replace(profile, parameters=Parameters(**values))


def _in_default_mode(device: Device) -> Device:
    return device.at_mode(device.default_power_mode) if device.default_power_mode else device


def _silicon(device: Device) -> float:
    return device.compute.sm_count * device.compute.clock_hz


def _cpu_clock_hz(device: Device) -> float | None:
    return device.find_mode(device.power_mode).cpu_clock_hz if device.power_mode else None


def family_defaults(device: Device) -> Calibration:
    """The priors of a device's family: Jetson boards, its architecture, or no family in particular."""
    folder = profiles_directory()
    family = ["default-jetson.toml"] if device.memory.unified and device.form_factor == "module" else []
    exact = f"default-{device.architecture}-{device.compute_capability}.toml"
    for name in (*family, exact, f"default-{device.architecture}.toml"):
        if (folder / name).exists():
            return read_profile(folder / name)
    return read_profile(folder / "default.toml")


EDITED_SHEET = "this data sheet has its id but other figures"


def _is_bundled(device: Device) -> bool:
    """Whether the device's figures are those of the bundled sheet of its id (a user's copy may differ)."""
    bundled = load_device(device.id, device.power_mode)
    return all(getattr(device, part) == getattr(bundled, part) for part in ("memory", "compute", "power"))


def _transfer_table(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "transfer.toml").read_text(encoding="utf-8"))


def _transferred(device: Device, folder: Path) -> Calibration | None:
    """A sibling's profile with wider spreads, if `transfer.toml` names one for this device."""
    table = _transfer_table(folder)
    entry = table["from"].get(device.id)
    if entry is None or not (folder / entry["file"]).exists():
        return None
    return msgspec.structs.replace(_borrowed(read_profile(folder / entry["file"]), entry["why"], table), idle_w=None)


def _borrowed(profile: Calibration, why: str, table: dict[str, Any]) -> Calibration:
    """A profile used on another device than it was fitted on: wider, and it says so."""
    wider = {kind: math.hypot(sd, table["log_sd"]) for kind, sd in profile.log_sd.items()}
    return msgspec.structs.replace(profile, log_sd=wider, transferred=why)
