"""How often each part's power sensor speaks, over how long it averages, and how much of the time it sees.

A sensor that averages 25 ms of every 100 ms never sees three quarters of the run. Its mean holds for a steady load
over seconds, and for nothing shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

# Readings faster than this would take the interpreter from the load generator and tell little more.
FASTEST_PERIOD_S = 0.05


@dataclass(frozen=True)
class Sensor:
    """A power sensor as software sees it. `observed`: share of the time that its values cover; None: not known.

    `update_s`: seconds between new values; `averaging_s`: seconds that one value covers.
    """

    update_s: float
    averaging_s: float
    observed: float | None
    source: str

    @property
    def period_s(self) -> float:
        """Seconds between two readings: one per new value, not faster than `FASTEST_PERIOD_S`."""
        return max(self.update_s, FASTEST_PERIOD_S)


_STUDY = "sensor study of 70 GPUs, arXiv 2312.02741"
_NVML = "NVML header: power is a 1 s average from Ampere on, GA100 apart; update not measured, taken as 100 ms"

# First compute capability of a row, averaged or not -> sensor. The last row not above the part's capability holds.
# "Averaged": NVML field 185, or nvmlDeviceGetPowerUsage where that is documented as an average.
NVIDIA_SENSORS: tuple[tuple[tuple[int, int], bool, Sensor], ...] = (
    ((6, 0), False, Sensor(0.020, 0.010, 0.50, _STUDY + ", Pascal")),
    ((7, 0), False, Sensor(0.020, 0.010, 0.50, _STUDY + ", Volta")),
    ((7, 5), False, Sensor(0.100, 0.100, 1.00, _STUDY + ", Turing")),
    ((8, 0), False, Sensor(0.100, 0.025, 0.25, _STUDY + ", A100")),
    ((8, 6), False, Sensor(0.100, 0.100, 1.00, _STUDY + ", RTX 3090")),
    ((8, 6), True, Sensor(0.100, 1.000, 1.00, _NVML)),
    ((9, 0), False, Sensor(0.100, 0.025, 0.25, _STUDY + ", H100 instantaneous")),
    ((9, 0), True, Sensor(0.100, 1.000, 1.00, _STUDY + ", H100 average")),
    ((10, 0), False, Sensor(0.100, 0.025, None, "not measured; taken as on H100")),
    ((10, 0), True, Sensor(0.100, 1.000, 1.00, _NVML)),
)
GRACE_HOPPER = Sensor(0.100, 0.020, 0.20, _STUDY + ", GH200; the value mixes GPU and CPU")
UNKNOWN_GPU = Sensor(0.100, 0.100, None, "part not known; taken as 100 ms")
UNKNOWN_AVERAGE = Sensor(0.100, 1.000, None, "part not known; averages taken as over 1 s")
AMD_GPU = Sensor(0.100, 0.100, None, "not measured; amdsmi states no averaging window")
INA3221 = Sensor(0.100, 0.010, None, "INA3221 converts its three channels in turn, milliseconds each (kernel driver)")


def nvidia_sensor(name: str, capability: tuple[int, int] | None, averaged: bool) -> Sensor:
    """The sensor of an NVIDIA part, by its NVML name, compute capability and whether an averaged value is read."""
    if "GH200" in name and not averaged:
        return GRACE_HOPPER
    unknown = UNKNOWN_AVERAGE if averaged else UNKNOWN_GPU
    rows = [(first, sensor) for first, is_average, sensor in NVIDIA_SENSORS if is_average == averaged]
    return max((row for row in rows if capability and row[0] <= capability), default=((0, 0), unknown))[1]
