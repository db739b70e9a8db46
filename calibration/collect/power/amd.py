"""AMD GPUs through amdsmi (part of ROCm), if it can be imported."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from calibration.collect.power.energy import Counter, Counters, Reading
from calibration.collect.power.nothing import Unavailable
from calibration.collect.power.sensors import AMD_GPU
from calibration.collect.power.throttle import AMD_REASONS
from calibration.collect.power.visible import HIP, physical
from simulator.errors import UserError

POWERS = ("current_socket_power", "average_socket_power", "socket_power")  # watts; which of them answers is per part
CLOCKS = {"sm": "GFX", "memory": "MEM"}
# Versions that hand out the library's own numbers say "not known" by the largest of 16, 32 or 64 bits.
NOT_KNOWN = (None, "N/A", 2**16 - 1, 2**32 - 1, 2**64 - 1)


def load_amdsmi() -> Any:
    """The module `amdsmi`, initialised for GPUs. Unavailable with the reason where that fails."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its library is missing
            import amdsmi  # only here: part of ROCm, on few machines
    except ImportError as error:
        raise Unavailable(f"AMD: {error}") from None
    except Exception as error:  # a library that is missing or of another version: OSError, KeyError, AttributeError
        raise Unavailable(f"AMD: amdsmi cannot be loaded: {type(error).__name__}: {error}") from None
    try:
        amdsmi.amdsmi_init(amdsmi.AmdSmiInitFlags.INIT_AMD_GPUS)
    except amdsmi.AmdSmiException as error:
        raise Unavailable(f"AMD: {_text(error)}") from None
    return amdsmi


def _text(error: Exception) -> str:
    return " ".join(str(error).split())


class AmdInstrument:
    """Power of one GPU or the sum of several, as an `Instrument`.

    `devices`: GPU numbers as HIP counts them (HIP_VISIBLE_DEVICES is followed). Unavailable where there is no library,
    no GPU, or neither power nor an energy counter; UserError for a GPU that is not there.
    """

    name, scope, of, sensor = "amd", "board", "", AMD_GPU
    notes: tuple[str, ...] = ()

    def __init__(self, devices: Sequence[int | str] = (0,), environ: Mapping[str, str] = os.environ) -> None:
        self.smi = load_amdsmi()
        try:
            self.handles = self._find(devices, environ)
            self.why_no_power = next((why for label in self.handles if (why := self._power(label)[1])), None)
            self._no_counter = next((why for label in self.handles if (why := self._counter(label)[1])), None)
            if not self.events():
                self.notes = ("whether the GPU throttles is not known: amdsmi counts no violations",)
            if self.why_no_power and self._no_counter:
                raise Unavailable(f"AMD: {self.why_no_power}; {self._no_counter}")
        except BaseException:
            self.close()
            raise

    def _find(self, devices: Sequence[int | str], environ: Mapping[str, str]) -> dict[str, Any]:
        handles, reason = self._ask("amdsmi_get_processor_handles")
        if not handles:
            raise Unavailable(f"AMD: {reason or 'amdsmi knows no GPU'}")
        # HIP may number GPUs in another order than amdsmi lists them.
        infos = [self._ask("amdsmi_get_gpu_enumeration_info", handle)[0] or {} for handle in handles]
        ids = [info.get("hip_id", place) for place, info in enumerate(infos)]
        by_hip = dict(zip(ids if all(isinstance(number, int) for number in ids) else range(len(handles)), handles))
        by_hip |= {
            f"GPU-{info['hip_uuid'].removeprefix('GPU-')}": h for info, h in zip(infos, handles) if info.get("hip_uuid")
        }
        found = {}
        for label, device in physical(devices, HIP, environ):
            if device not in by_hip:
                raise UserError(f"there is no GPU {device}: amdsmi knows {len(handles)}; expected a number below that")
            found[label] = by_hip[device]
        return found

    def _ask(self, call: str, *arguments: Any) -> tuple[Any, str | None]:
        """(Answer, None) of one call, or (None, reason)."""
        function = getattr(self.smi, call, None)
        if function is None:
            return None, f"{call}: this amdsmi does not have it"
        try:
            return function(*arguments), None
        except self.smi.AmdSmiException as error:
            return None, f"{call}: {_text(error)}"

    def _power(self, label: str) -> tuple[float | None, str | None]:
        """Watts now, or why not. 0 W is no answer: the second die of an MI250 says 0, its power is with the first."""
        info, reason = self._ask("amdsmi_get_power_info", self.handles[label])
        if reason is not None:
            return None, f"{label}: {reason}"
        known = [info[name] for name in POWERS if info.get(name) not in NOT_KNOWN]
        watts = next((float(value) for value in known if value > 0), None)
        return (watts, None) if watts else (None, f"{label}: amdsmi_get_power_info: {'0 W' if known else 'N/A'}")

    def _counter(self, label: str) -> tuple[Counter | None, str | None]:
        info, reason = self._ask("amdsmi_get_energy_count", self.handles[label])
        if reason is not None:
            return None, f"{label}: {reason}"
        ticks = info.get("energy_accumulator", info.get("power"))  # the name before ROCm 6.4
        if not ticks or ticks in NOT_KNOWN or info.get("counter_resolution") in (0, *NOT_KNOWN):
            return None, f"{label}: the energy counter stands at {ticks}"
        return Counter(int(ticks), float(info["counter_resolution"]) * 1e-6), None  # microjoules per tick

    def _clocks_hz(self, handle: Any) -> dict[str, float]:
        kinds = self.smi.AmdSmiClkType
        asked = {n: self._ask("amdsmi_get_clock_info", handle, getattr(kinds, kind))[0] for n, kind in CLOCKS.items()}
        found = {name: info.get("clk", info.get("cur_clk")) for name, info in asked.items() if info}
        return {name: megahertz * 1e6 for name, megahertz in found.items() if megahertz not in NOT_KNOWN}

    def _temperature_c(self, handle: Any) -> float | None:
        kind, metric = self.smi.AmdSmiTemperatureType.HOTSPOT, self.smi.AmdSmiTemperatureMetric.CURRENT
        value, _ = self._ask("amdsmi_get_temp_metric", handle, kind, metric)
        if value in NOT_KNOWN:
            return None
        return value / 1e3 if value > 1e3 else float(value)  # versions differ: degrees or thousandths

    def read(self) -> Reading:
        """Power, clocks and temperature now. The total is None unless every GPU answers."""
        found = {label: self._power(label) for label in self.handles}
        failure = next((why for _, why in found.values() if why), None)
        parts = {label: watts for label, (watts, _) in found.items() if watts is not None}
        clocks = [self._clocks_hz(handle) for handle in self.handles.values()]
        temperatures = [self._temperature_c(handle) for handle in self.handles.values()]
        return Reading(
            power_w=None if failure else sum(parts.values()),
            parts_w=parts,
            clocks_hz={name: min(all_of) for name in CLOCKS if (all_of := [c[name] for c in clocks if name in c])},
            temperature_c=max((celsius for celsius in temperatures if celsius is not None), default=None),
            failure=failure,
        )

    def counters(self) -> Counters:
        """The energy counters of all GPUs now."""
        if self._no_counter:
            return Counters({}, self._no_counter)
        found = {label: self._counter(label) for label in self.handles}
        reason = next((why for _, why in found.values() if why), None)
        return Counters({label: counter for label, (counter, _) in found.items() if counter is not None}, reason)

    def events(self) -> dict[str, int]:
        """Accumulated throttling by reason, over all GPUs; empty on parts that do not count it."""
        totals: dict[str, int] = {}
        for handle in self.handles.values():
            status = self._ask("amdsmi_get_violation_status", handle)[0] or {}
            for name, (words, _) in AMD_REASONS.items():
                if status.get(name) not in NOT_KNOWN:
                    totals[words] = totals.get(words, 0) + int(status[name])
        return totals

    def close(self) -> None:
        """Give the library back."""
        self._ask("amdsmi_shut_down")
