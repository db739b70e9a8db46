"""Power and energy of what runs: NVML, AMD, Jetson, or nothing and why.

meter = find_meter()
measure_idle(meter, 10.0)
with measured(meter) as result:
    ...                                   # at least 5 s of steady load
result.window.energy_j, result.window.method, result.window.reason
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calibration.collect.power.amd import AmdInstrument
from calibration.collect.power.energy import PowerWindow, Sample
from calibration.collect.power.jetson import JetsonInstrument, jetson_facts
from calibration.collect.power.judge import MIN_WINDOW_S
from calibration.collect.power.nothing import Nothing, Unavailable
from calibration.collect.power.nvml import NvmlInstrument
from calibration.collect.power.nvml_facts import nvml_facts
from calibration.collect.power.sampler import Instrument, Meter, SamplingMeter, idle_power_w, measure_idle, measured
from simulator.errors import UserError, unknown_name

__all__ = [
    "METERS", "MIN_WINDOW_S", "Meter", "Nothing", "PowerWindow", "Sample", "Unavailable", "find_meter", "idle_power_w",
    "jetson_facts", "measure_idle", "measured", "nvml_facts",
]  # fmt: skip

METERS = ("nvml", "amd", "jetson", "none")


def find_meter(
    prefer: str | None = None, device: int | str | Sequence[int | str] = 0, *, root: str | Path = "/",
    min_window_s: float = MIN_WINDOW_S,
) -> Meter:  # fmt: skip
    """The first meter that works, of NVML, AMD and Jetson; else `Nothing`, with the reason of each.

    `prefer`: "nvml", "amd", "jetson", "jetson:RAIL" (that rail alone) or "none". `device`: a GPU's number as the
    program counts them, its UUID, or several, whose power is summed. `root`: of the file system, for Jetson.
    UserError for an unknown name, a GPU or rail that is not there, or a preferred meter that does not work.
    """
    name, _, rail = (prefer or "").partition(":")
    if prefer is not None and (name not in METERS or (rail and name != "jetson")):
        raise unknown_name("power meter", prefer, METERS, f"expected one of {', '.join(METERS)}, or jetson:RAIL")
    if name == "none":
        return Nothing("no power meter was asked for")
    devices = [device] if isinstance(device, int | str) else list(device)
    reasons = []
    for kind, open_instrument in _instruments(devices, root, rail or None).items():
        if name and kind != name:
            continue
        try:
            return SamplingMeter(open_instrument(), min_window_s)
        except Unavailable as error:
            reasons.append(str(error))
    if name:
        raise UserError(f"power meter '{prefer}' does not work here: {'; '.join(reasons)}")
    return Nothing("; ".join(reasons))


def _instruments(
    devices: Sequence[int | str], root: str | Path, rail: str | None
) -> dict[str, Callable[[], Instrument]]:
    """How to open each kind, in the order of trying."""
    return {
        "nvml": lambda: NvmlInstrument(devices),
        "amd": lambda: AmdInstrument(devices),
        "jetson": lambda: JetsonInstrument(root, rail),
    }
