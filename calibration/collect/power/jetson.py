"""NVIDIA Jetson through sysfs: the INA3221 monitors of the module's power rails. NVML answers NotSupported there.

Every function takes the root of the file system, "/" on a board.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.collect.power.energy import Counters, Reading
from calibration.collect.power.nothing import Unavailable
from calibration.collect.power.sensors import INA3221
from calibration.collect.power.system_files import system_text
from calibration.collect.power.throttle import JETSON_REASONS, JETSON_THERMAL
from simulator.errors import unknown_name

# Where the monitors are: kernels of JetPack 5 and newer, then those of JetPack 4.
HWMON = ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*")
IIO = ("sys/bus/i2c/drivers/ina3221*/*/iio:device*",)
INPUTS = ("VDD_IN", "POM_5V_IN")  # measured in front of all others: the whole module
WITHIN_ANOTHER = ("VDDQ_VDD2_1V8AO",)  # of AGX Orin: fed by VIN_SYS_5V0, so it is counted there (NVIDIA forum 223111)
SUM_CHANNEL = 7  # sum of the shunt voltages, no rail


@dataclass(frozen=True)
class Rail:
    """One measured rail: files of millivolts and milliamperes, or one of milliwatts."""

    name: str
    files: tuple[Path, ...]

    def power_w(self) -> float | None:
        """Watts now; None where a file cannot be read."""
        values = [_number(path) for path in self.files]
        if any(value is None for value in values):
            return None
        return values[0] * values[1] / 1e6 if len(values) == 2 else values[0] / 1e3


def find_rails(root: Path) -> list[Rail]:
    """All rails, sorted by name; channels that are not connected, are switched off or hold the sum are left out."""
    rails = {}
    for folder in _folders(root, HWMON):
        if "ina3221" in (system_text(folder / "name") or ("ina3221" if "drivers" in folder.parts else "")):
            rails |= {rail.name: rail for rail in _hwmon_rails(folder)}
    for folder in _folders(root, IIO):
        rails |= {rail.name: rail for rail in _iio_rails(folder)}
    return [rails[name] for name in sorted(rails)]


def _hwmon_rails(folder: Path) -> Iterator[Rail]:
    for label in sorted(folder.glob("in*_label")):
        channel = int(re.sub(r"\D", "", label.name))
        name = system_text(label) or ""
        off = _number(folder / f"in{channel}_enable") == 0
        if channel == SUM_CHANNEL or off or not _is_rail(name):
            continue
        files = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        if all(path.exists() for path in files):
            yield Rail(name, files)


def _iio_rails(folder: Path) -> Iterator[Rail]:
    for label in sorted(folder.glob("rail_name_*")):
        name, channel = system_text(label) or "", label.name.removeprefix("rail_name_")
        path = folder / f"in_power{channel}_input"
        if _is_rail(name) and path.exists():
            yield Rail(name, (path,))


def _is_rail(name: str) -> bool:
    """Whether a label names a rail: not empty, not "NC" (not connected), not the label of the sum."""
    return bool(name) and not re.fullmatch(r"NC\d*", name) and not name.lower().startswith("sum of")


def rail_scope(name: str) -> str:
    """The power_scope of records for one rail: VDD_GPU_SOC gives gpu_soc_rail; an input rail is the module."""
    return "module" if name in INPUTS else f"{name.removeprefix('VDD_').lower()}_rail"


class JetsonInstrument:
    """Power of a Jetson module, as an `Instrument`; every rail is in a reading's `parts_w`.

    `rail` None: the whole module, that is the input rail, else the sum of the rails that do not feed each other. A
    rail's name: that rail alone. Unavailable where no rail is found; UserError for a rail that is not there.
    """

    name, sensor = "jetson", INA3221
    why_no_power: str | None = None

    def __init__(self, root: str | Path = "/", rail: str | None = None) -> None:
        self.root = Path(root)
        self.rails = find_rails(self.root)
        if not self.rails:
            raise Unavailable("Jetson: no INA3221 power monitor in sysfs")
        names = [found.name for found in self.rails]
        if rail is not None and rail not in names:
            raise unknown_name("power rail", rail, names, f"expected one of {', '.join(names)}")
        inputs = [name for name in INPUTS if name in names][:1]
        self.counted = [rail] if rail else inputs or [name for name in names if name not in WITHIN_ANOTHER]
        self.of = " + ".join(self.counted)
        self.scope = rail_scope(rail) if rail else "module"
        mode = power_mode(self.root)
        self.notes = (f"power mode {mode}",) if mode else ()
        self._gpu = _gpu_clock(self.root)
        self._zones = _gpu_zones(self.root)
        self._alerts = _thermal_alerts(self.root)
        if not self._alerts and not self.events():
            self.notes += ("whether the board throttles is not known: no such file in sysfs",)

    def read(self) -> Reading:
        """Power of all rails, the GPU's clock and temperature now. No total unless every counted rail answers."""
        found = {rail.name: rail.power_w() for rail in self.rails}
        silent = [name for name in self.counted if found[name] is None]
        hertz = _number(self._gpu / "cur_freq") if self._gpu else None
        throttled = any(_number(alert / "cur_state") for alert in self._alerts)
        temperatures = [value / 1e3 for zone in self._zones if (value := _number(zone / "temp")) is not None]
        return Reading(
            power_w=None if silent else sum(found[name] for name in self.counted),
            parts_w={name: watts for name, watts in found.items() if watts is not None},
            clocks_hz={"sm": hertz} if hertz else {},
            temperature_c=max((celsius for celsius in temperatures if celsius > -100), default=None),  # -256: GPU off
            throttle=(JETSON_THERMAL[0],) if throttled else (),
            failure=f"rail {silent[0]} cannot be read" if silent else None,
        )

    def counters(self) -> Counters:
        """There are none."""
        return Counters({}, "Jetson has no energy counter")

    def events(self) -> dict[str, int]:
        """Counts of over-current and under-voltage throttling since boot, by reason."""
        counts: dict[str, int] = {}
        for folder in _folders(self.root, HWMON[:1]):
            for name, (words, _) in JETSON_REASONS.items():
                count = _number(folder / name)
                if count is not None:
                    counts[words] = counts.get(words, 0) + int(count)
        return counts

    def close(self) -> None:
        """Nothing is held open."""


def power_mode(root: str | Path) -> str | None:
    """Name of the nvpmodel power mode (MAXN, 15W, ...); its number where the name is not found; None if not known."""
    status = re.search(r"pmode:\s*(\d+)", system_text(Path(root) / "var/lib/nvpmodel/status") or "")
    conf = system_text(Path(root) / "etc/nvpmodel.conf") or ""
    default = re.search(r"PM_CONFIG\s+DEFAULT=(\d+)", conf)
    number = status or default  # without a choice of the user the default mode holds
    if number is None:
        return None
    names = {int(n): name for n, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", conf)}
    return names.get(int(number[1]), str(int(number[1])))


def jetson_facts(root: str | Path = "/") -> dict[str, Any]:
    """What a record's provenance needs of a board: model, L4T release, power mode, GPU clock range, rails.

    `clocks_locked`: the GPU's lowest and highest clock are equal, as `jetson_clocks` sets them. None: not known.
    """
    root = Path(root)
    gpu = _gpu_clock(root)
    low, high = (_number(gpu / name) if gpu else None for name in ("min_freq", "max_freq"))
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", system_text(root / "etc/nv_tegra_release") or "")
    return {
        "name": system_text(root / "proc/device-tree/model"),
        "driver_version": f"L4T {release[1]}.{release[2]}" if release else None,
        "power_mode": power_mode(root),
        "min_sm_clock_hz": low,
        "max_sm_clock_hz": high,
        "clocks_locked": low == high if low is not None and high is not None else None,
        "rails": [rail.name for rail in find_rails(root)],
    }


def _gpu_clock(root: Path) -> Path | None:
    """The GPU's devfreq folder: by the name of its device, else by its own."""
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        name = (system_text(folder / "device/of_node/name") or folder.name).lower()
        if "gpu" in name or re.search(r"g[abpv]\d\d[bm]", name):
            return folder
    return None


def _gpu_zones(root: Path) -> list[Path]:
    zones = sorted(root.glob("sys/class/thermal/thermal_zone*"))
    return [zone for zone in zones if (system_text(zone / "type") or "").lower().startswith(("gpu", "tj"))]


def _thermal_alerts(root: Path) -> list[Path]:
    """The firmware's alerts that hold clocks down: cooling devices whose state is not 0 while they do."""
    devices = sorted(root.glob("sys/class/thermal/cooling_device*"))
    return [device for device in devices if "throttle-alert" in (system_text(device / "type") or "")]


def _folders(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_dir()]


def _number(path: Path) -> float | None:
    try:
        return float(system_text(path) or "")
    except ValueError:
        return None
