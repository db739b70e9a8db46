"""NVIDIA GPUs through NVML (package nvidia-ml-py, module `pynvml`): energy counters, power fields, clocks, throttling.

A call that a part does not support answers with a reason and is not asked again; it is never read as 0.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calibration.collect.power.energy import Counter, Counters, Reading
from calibration.collect.power.nothing import Unavailable
from calibration.collect.power.sensors import Sensor, nvidia_sensor
from calibration.collect.power.throttle import nvml_words
from calibration.collect.power.visible import CUDA, physical
from simulator.errors import UserError

JOULE_PER_TICK = 1e-3  # the counter counts millijoules since the driver was loaded
# NVML field ids of power in milliwatts, and the scopes that they are asked for.
POWER_AVERAGE, POWER_INSTANT = 185, 186
FIELD_SCOPES = {0: "board", 1: "module"}
CLOCKS = {"sm": 1, "memory": 2}  # NVML clock types
TEMPERATURE_SENSOR = 0
# Members of the union of a field value, by its value type.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


def load_nvml() -> Any:
    """The module `pynvml` with NVML initialised. Unavailable with the reason, where there is no driver."""
    try:
        import pynvml  # only here: the package, or the driver below it, may be missing
    except ImportError as error:
        raise Unavailable(f"NVML: {error}") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML: {error}") from None
    return pynvml


def ask(nvml: Any, call: str, *arguments: Any) -> tuple[Any, str | None]:
    """(Answer, None) of one NVML call, or (None, reason)."""
    function = getattr(nvml, call, None)
    if function is None:
        return None, f"{call}: this pynvml does not have it"
    try:
        return function(*arguments), None
    except nvml.NVMLError as error:
        return None, f"{call}: {error}"


def ask_first(nvml: Any, calls: Sequence[str], *arguments: Any) -> tuple[Any, str | None]:
    """The first answer that one of several calls gives; the reason of the first where none does."""
    answers = [ask(nvml, calls[0], *arguments)]
    for call in calls[1:]:
        if answers[-1][1] is None:
            break
        answers.append(ask(nvml, call, *arguments))
    return answers[-1] if answers[-1][1] is None else answers[0]


def field_w(nvml: Any, handle: Any, field: int, scope: int) -> tuple[float | None, str | None]:
    """Watts of a power field, or the reason why not. 0 mW is no answer: a GPU that is on draws power."""
    values, reason = ask(nvml, "nvmlDeviceGetFieldValues", handle, [(field, scope)])
    if reason is not None:
        return None, reason
    value = values[0]
    if value.nvmlReturn != 0:
        return None, f"power field {field}: {nvml.NVMLError(value.nvmlReturn)}"
    watts = float(getattr(value.value, _MEMBERS[value.valueType])) / 1e3
    return (watts, None) if watts > 0 else (None, f"power field {field}: 0 W")


class Gpu:
    """One GPU: which of its power readings answers, and what it says.

    `scope`: what the power covers; `averaged`: whether it is an average over a second or so; `why_no_power`: the reason
    where nothing answers.
    """

    def __init__(self, nvml: Any, handle: Any, label: str) -> None:
        self.nvml, self.handle, self.label = nvml, handle, label
        self.name = ask(nvml, "nvmlDeviceGetName", handle)[0] or ""
        self.capability: tuple[int, int] | None = ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)[0]
        self.scope, self.averaged, self.why_no_power = "board", False, None
        self.power: Callable[[], tuple[float | None, str | None]]
        self.instant: Callable[[], tuple[float | None, str | None]] | None = None
        self._find_power()

    def _find_power(self) -> None:
        """Take the first reading that answers: the averaged field, which misses nothing, then the others."""
        for scope, field in itertools.product(FIELD_SCOPES, (POWER_AVERAGE, POWER_INSTANT)):
            power = self._field(field, scope)
            if power()[1] is None:
                self.power, self.scope, self.averaged = power, FIELD_SCOPES[scope], field == POWER_AVERAGE
                instant = self._field(POWER_INSTANT, scope)
                self.instant = instant if self.averaged and instant()[1] is None else None
                return
        self.power = self._usage
        # From Ampere on, GA100 apart, this call gives a mean over a second.
        self.averaged = self.capability is not None and self.capability > (8, 0)
        reason = self.power()[1]
        self.why_no_power = f"{self.label}: {reason}" if reason is not None else None

    def _field(self, field: int, scope: int) -> Callable[[], tuple[float | None, str | None]]:
        return lambda: field_w(self.nvml, self.handle, field, scope)

    def _usage(self) -> tuple[float | None, str | None]:
        milliwatts, reason = ask(self.nvml, "nvmlDeviceGetPowerUsage", self.handle)
        if reason is not None:
            return None, reason
        return (milliwatts / 1e3, None) if milliwatts > 0 else (None, "nvmlDeviceGetPowerUsage: 0 W")

    @property
    def sensor(self) -> Sensor:
        """What is known of its power sensor."""
        return nvidia_sensor(self.name, self.capability, self.averaged)

    def counter(self) -> tuple[Counter | None, str | None]:
        """Its energy counter now, or the reason. A counter at 0 is one that does not count."""
        ticks, reason = ask(self.nvml, "nvmlDeviceGetTotalEnergyConsumption", self.handle)
        if reason is not None or not ticks:
            return None, f"{self.label}: {reason or 'the energy counter stands at 0'}"
        return Counter(ticks, JOULE_PER_TICK), None

    def clocks_hz(self) -> dict[str, float]:
        """Its clocks now, those that it tells."""
        asked = {name: ask(self.nvml, "nvmlDeviceGetClockInfo", self.handle, kind)[0] for name, kind in CLOCKS.items()}
        return {name: megahertz * 1e6 for name, megahertz in asked.items() if megahertz is not None}

    def temperature_c(self) -> float | None:
        """Its temperature now."""
        calls = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        return ask_first(self.nvml, calls, self.handle, TEMPERATURE_SENSOR)[0]

    def throttle_bits(self) -> tuple[int | None, str | None]:
        """Its clocks event reasons now as NVML's bits, or why it does not tell."""
        calls = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return ask_first(self.nvml, calls, self.handle)


class NvmlInstrument:
    """Power of one GPU or the sum of several, as an `Instrument`.

    `devices`: GPU numbers as CUDA counts them (CUDA_VISIBLE_DEVICES is followed), or UUIDs. Unavailable where there is
    no driver, no GPU, or neither power nor an energy counter; UserError for a GPU that is not there.
    """

    name, of = "nvml", ""

    def __init__(self, devices: Sequence[int | str] = (0,), environ: Mapping[str, str] = os.environ) -> None:
        self._devices, self._environ = tuple(devices), environ
        self.nvml = load_nvml()
        try:
            self.gpus = [Gpu(self.nvml, handle, label) for label, handle in find_gpus(self.nvml, devices, environ)]
            self._probe()
        except BaseException:
            self.close()
            raise

    def _probe(self) -> None:
        scopes = {gpu.scope for gpu in self.gpus}
        self.scope = "module" if "module" in scopes else "board"
        self.sensor = max((gpu.sensor for gpu in self.gpus), key=lambda sensor: (sensor.averaging_s, sensor.update_s))
        self.why_no_power = next((gpu.why_no_power for gpu in self.gpus if gpu.why_no_power), None)
        self._no_counter = next((reason for gpu in self.gpus if (reason := gpu.counter()[1])), None)
        if self.why_no_power and self._no_counter:
            raise Unavailable(f"NVML: {self.why_no_power}; {self._no_counter}")
        notes = [
            f"{gpu.label} is split by MIG: power is that of the whole GPU" for gpu in self.gpus if self._split(gpu)
        ]
        silent = ((gpu.label, gpu.throttle_bits()[1]) for gpu in self.gpus)
        notes += [f"whether {label} throttles is not known: {reason}" for label, reason in silent if reason]
        if len(scopes) > 1:
            notes.append("power of some GPUs is that of the board, of others that of the module")
        if self._order_is_unclear():
            notes.append("GPUs of several kinds: CUDA numbers them as here only with CUDA_DEVICE_ORDER=PCI_BUS_ID")
        self.notes = tuple(notes)

    def _order_is_unclear(self) -> bool:
        """Whether CUDA may number the GPUs by speed, where NVML numbers them by slot."""
        if self._environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or all(isinstance(d, str) for d in self._devices):
            return False
        count = ask(self.nvml, "nvmlDeviceGetCount")[0] or 0
        handles = (ask(self.nvml, "nvmlDeviceGetHandleByIndex", index)[0] for index in range(count))
        return len({ask(self.nvml, "nvmlDeviceGetName", handle)[0] for handle in handles if handle is not None}) > 1

    def _split(self, gpu: Gpu) -> bool:
        modes = ask(self.nvml, "nvmlDeviceGetMigMode", gpu.handle)[0]
        return bool(modes and modes[0])

    def read(self) -> Reading:
        """Power, clocks, temperature and throttling now. The total is None unless every GPU answers."""
        powers = {gpu.label: gpu.power() for gpu in self.gpus} if self.why_no_power is None else {}
        failure = next((f"{label}: {reason}" for label, (_, reason) in powers.items() if reason), self.why_no_power)
        parts = {label: watts for label, (watts, _) in powers.items() if watts is not None}
        instants = [gpu.instant()[0] for gpu in self.gpus if gpu.instant is not None]
        bits = functools.reduce(operator.or_, (gpu.throttle_bits()[0] or 0 for gpu in self.gpus))
        clocks = [gpu.clocks_hz() for gpu in self.gpus]
        temperatures = [celsius for gpu in self.gpus if (celsius := gpu.temperature_c()) is not None]
        whole = len(instants) == len(self.gpus) and all(watts is not None for watts in instants)
        return Reading(
            power_w=None if failure else sum(parts.values()),
            parts_w=parts,
            instant_w=sum(instants) if whole else None,
            clocks_hz={name: min(found) for name in CLOCKS if (found := [c[name] for c in clocks if name in c])},
            temperature_c=max(temperatures, default=None),
            throttle=nvml_words(bits),
            failure=failure,
        )

    def counters(self) -> Counters:
        """The energy counters of all GPUs now. A part that had none when the meter was opened is not asked again."""
        if self._no_counter:
            return Counters({}, self._no_counter)
        found = {gpu.label: gpu.counter() for gpu in self.gpus}
        reason = next((why for _, why in found.values() if why), None)
        return Counters({label: counter for label, (counter, _) in found.items() if counter is not None}, reason)

    def events(self) -> dict[str, int]:
        """NVML's throttle reasons are sampled, not counted."""
        return {}

    def close(self) -> None:
        """Give NVML back; its own count of users keeps it open for others in the process."""
        ask(self.nvml, "nvmlShutdown")


def find_gpus(nvml: Any, devices: Sequence[int | str], environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(Label, NVML handle) of each GPU. Unavailable without any GPU; UserError for one that is not there."""
    count, reason = ask(nvml, "nvmlDeviceGetCount")
    if not count:
        raise Unavailable(f"NVML: {reason or 'it knows no GPU'}")
    return [(label, _handle(nvml, device, count)) for label, device in physical(devices, CUDA, environ)]


def _handle(nvml: Any, device: int | str, count: int) -> Any:
    if isinstance(device, int) and not 0 <= device < count:
        raise UserError(f"there is no GPU {device}: NVML knows {count}; expected a number below that")
    if isinstance(device, int):
        handle, reason = ask(nvml, "nvmlDeviceGetHandleByIndex", device)
    else:
        handle, reason = ask(nvml, "nvmlDeviceGetHandleByUUID", _whole_uuid(nvml, device, count))
    if handle is not None and isinstance(device, str) and device.startswith("MIG-"):
        # A part of a GPU has neither power nor clocks of its own; those of the whole GPU say that it is split.
        handle, reason = ask(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
    if handle is None:
        raise UserError(f"GPU '{device}' cannot be opened: {reason}; expected a GPU's number or UUID")
    return handle


def _whole_uuid(nvml: Any, beginning: str, count: int) -> str:
    """The UUID that begins so: CUDA accepts a shortened one, NVML does not. Unchanged if none or several do."""
    handles = (ask(nvml, "nvmlDeviceGetHandleByIndex", index)[0] for index in range(count))
    uuids = (ask(nvml, "nvmlDeviceGetUUID", handle)[0] for handle in handles if handle is not None)
    matching = [uuid for uuid in uuids if uuid and uuid.startswith(beginning)]
    return matching[0] if len(matching) == 1 else beginning
