"""A test double of NVML with the call surface of `pynvml`: GPUs whose power follows a function of a fake clock.

Constants and errors are those of the real `pynvml`, so its messages are the real ones. Calls named in `refuse` answer
NotSupported; every other call answers as NVML documents it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml

from calibration.collect.power.sampler import Sampler

TICK_S = 0.1  # the energy counter moves about so often
GPU_SCOPE, MODULE_SCOPE = 0, 1


class FakeClock:
    """Seconds that pass only when told to; samplers made by `sampler` read at their periods meanwhile."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s, self._running = now_s, []

    def __call__(self) -> float:
        return self.now_s

    def sampler(self, read: Callable, period_s: float) -> Sampler:
        """What a meter uses instead of a thread: pass as `make_sampler`."""
        return _HandSampler(read, period_s, self)

    def run(self, seconds: float) -> None:
        """Let time pass, and every running sampler read when it is due."""
        end_s = self.now_s + seconds
        while (due := min((s.due_s for s in self._running), default=math.inf)) <= end_s:
            self.now_s = due
            for sampler in [s for s in self._running if s.due_s <= due]:
                sampler.take()
                sampler.due_s += sampler.period_s
        self.now_s = end_s


class _HandSampler(Sampler):
    """A sampler whose thread is the fake clock."""

    def start(self) -> None:
        self.take()
        self.due_s = self.clock() + self.period_s
        self.clock._running.append(self)

    def stop(self) -> tuple:
        if self in self.clock._running:
            self.clock._running.remove(self)
        return super().stop()


@dataclass
class FakeGpu:
    """One GPU. Functions are of the clock's time; `counter_j` is what the energy counter says when the fake is made.

    `counter_bits`: where the counter wraps; `counter_gain`: its error; `average_s`: seconds that the averaged field
    covers; `scope`: the only scope that power fields answer for; `reset_s`: when the driver is loaded anew;
    `zero_fields`: power fields succeed and say 0; `parts`: UUIDs of the MIG devices that it is split into.
    """

    clock: FakeClock
    power_w: Callable[[float], float] = lambda at_s: 300.0
    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11111111-aaaa"
    capability: tuple[int, int] = (9, 0)
    refuse: set[str] = field(default_factory=set)
    counter_j: float = 50_000.0
    counter_bits: int = 64
    counter_gain: float = 1.0
    average_s: float = 1.0
    scope: int = GPU_SCOPE
    throttle: Callable[[float], int] = lambda at_s: 0
    sm_mhz: Callable[[float], int] = lambda at_s: 1755
    celsius: int = 61
    mig: bool = False
    parts: tuple[str, ...] = ()
    zero_fields: bool = False
    reset_s: float = math.inf

    def __post_init__(self) -> None:
        self._times, self._joules = [self.clock.now_s], [0.0]

    def used_j(self, at_s: float, step_s: float = 0.005) -> float:
        """Joules since the clock's start, by small steps that are kept."""
        while self._times[-1] + step_s <= at_s + 1e-9:
            last_s = self._times[-1]
            self._joules.append(self._joules[-1] + self.power_w(last_s + step_s / 2) * step_s)
            self._times.append(last_s + step_s)
        return self._joules[bisect.bisect_right(self._times, at_s + 1e-9) - 1]

    def millijoules(self) -> int:
        """The counter: it moves every `TICK_S`, and wraps."""
        begin_s = self._times[0]
        tick_s = begin_s + math.floor((self.clock.now_s - begin_s) / TICK_S + 1e-6) * TICK_S
        joules = self.counter_j + self.counter_gain * self.used_j(tick_s)
        if self.clock.now_s >= self.reset_s:
            joules = self.counter_gain * (self.used_j(tick_s) - self.used_j(self.reset_s)) + 0.001
        return int(joules * 1e3) % (1 << self.counter_bits)

    def average_w(self) -> float:
        """Mean over the last `average_s`; before the fake's start power was what it was then."""
        begin_s = max(self.clock.now_s - self.average_s, self._times[0])
        before_s = self.average_s - (self.clock.now_s - begin_s)
        joules = self.used_j(self.clock.now_s) - self.used_j(begin_s) + before_s * self.power_w(self._times[0])
        return joules / self.average_s


@dataclass(frozen=True)
class MigPart:
    """The handle of a part of a split GPU: calls about power and clocks do not know it."""

    gpu: FakeGpu
    refuse = frozenset(name for name in dir(pynvml) if name.startswith("nvmlDeviceGet"))


class FakeNvml:
    """What `import pynvml` gives a test: the functions that the meter calls, on fake GPUs; constants are real."""

    def __init__(self, *gpus: FakeGpu, driver: str = "580.65.06", init_error: int | None = None) -> None:
        self.gpus, self.driver, self.init_error, self.users, self.calls = list(gpus), driver, init_error, 0, []

    def __getattr__(self, name: str):
        if name.startswith("nvml") and callable(getattr(pynvml, name)):
            raise AssertionError(f"{name} is not faked: the real one would need a driver")
        return getattr(pynvml, name)

    def _may(self, gpu: FakeGpu, call: str) -> None:
        self.calls.append(call)
        if call in gpu.refuse:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self):
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.users += 1

    def nvmlShutdown(self):
        self.users -= 1

    def nvmlSystemGetDriverVersion(self):
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self):
        return 13000

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
            if uuid in gpu.parts:
                return MigPart(gpu)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice):
        return migDevice.gpu

    def nvmlDeviceGetName(self, handle):
        return handle.name

    def nvmlDeviceGetUUID(self, handle):
        return handle.uuid

    def nvmlDeviceGetVbiosVersion(self, handle):
        self._may(handle, "nvmlDeviceGetVbiosVersion")
        return "96.00.74.00.01"

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        self._may(handle, "nvmlDeviceGetCudaComputeCapability")
        return handle.capability

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self._may(handle, "nvmlDeviceGetTotalEnergyConsumption")
        return handle.millijoules()

    def nvmlDeviceGetPowerUsage(self, handle):
        self._may(handle, "nvmlDeviceGetPowerUsage")
        return round(1e3 * (handle.average_w() if handle.capability > (8, 0) else handle.power_w(handle.clock.now_s)))

    def nvmlDeviceGetFieldValues(self, handle, fieldIds):
        self._may(handle, "nvmlDeviceGetFieldValues")
        return [self._field(handle, *field) for field in fieldIds]

    def _field(self, gpu: FakeGpu, field: int, scope: int):
        refused = scope != gpu.scope or f"field {field}" in gpu.refuse
        watts = gpu.average_w() if field == pynvml.NVML_FI_DEV_POWER_AVERAGE else gpu.power_w(gpu.clock.now_s)
        return SimpleNamespace(
            nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED if refused else pynvml.NVML_SUCCESS,
            valueType=pynvml.NVML_VALUE_TYPE_UNSIGNED_INT,
            value=SimpleNamespace(uiVal=123_456 if refused else 0 if gpu.zero_fields else round(1e3 * watts)),
        )

    def nvmlDeviceGetClockInfo(self, handle, type):
        self._may(handle, "nvmlDeviceGetClockInfo")
        return 2619 if type == pynvml.NVML_CLOCK_MEM else handle.sm_mhz(handle.clock.now_s)

    def nvmlDeviceGetMaxClockInfo(self, handle, type):
        self._may(handle, "nvmlDeviceGetMaxClockInfo")
        return 2619 if type == pynvml.NVML_CLOCK_MEM else 1980

    def nvmlDeviceGetApplicationsClock(self, handle, type):
        self._may(handle, "nvmlDeviceGetApplicationsClock")
        return 1980

    def nvmlDeviceGetTemperatureV(self, handle, sensor):
        self._may(handle, "nvmlDeviceGetTemperatureV")
        return handle.celsius

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._may(handle, "nvmlDeviceGetTemperature")
        return handle.celsius

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        self._may(handle, "nvmlDeviceGetCurrentClocksEventReasons")
        return handle.throttle(handle.clock.now_s)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self._may(handle, "nvmlDeviceGetCurrentClocksThrottleReasons")
        return handle.throttle(handle.clock.now_s)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        self._may(handle, "nvmlDeviceGetEnforcedPowerLimit")
        return 650_000

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle):
        self._may(handle, "nvmlDeviceGetPowerManagementDefaultLimit")
        return 700_000

    def nvmlDeviceGetPersistenceMode(self, handle):
        self._may(handle, "nvmlDeviceGetPersistenceMode")
        return 1

    def nvmlDeviceGetEccMode(self, device):
        self._may(device, "nvmlDeviceGetEccMode")
        return [1, 1]

    def nvmlDeviceGetMigMode(self, device):
        self._may(device, "nvmlDeviceGetMigMode")
        return [int(device.mig), 0]
