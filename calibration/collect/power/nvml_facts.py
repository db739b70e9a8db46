"""What NVML says of a GPU that does not change while it is measured: name, driver, limits, modes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from calibration.collect.power.nothing import Unavailable
from calibration.collect.power.nvml import CLOCKS, Gpu, ask, find_gpus, load_nvml

# Name of a fact -> NVML call, arguments after the handle, factor or translation.
_FACTS: dict[str, tuple[str, tuple[int, ...], Callable[[Any], Any]]] = {
    "name": ("nvmlDeviceGetName", (), str),
    "uuid": ("nvmlDeviceGetUUID", (), str),
    "vbios": ("nvmlDeviceGetVbiosVersion", (), str),
    "compute_capability": ("nvmlDeviceGetCudaComputeCapability", (), lambda pair: f"{pair[0]}.{pair[1]}"),
    "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit", (), lambda milliwatts: milliwatts / 1e3),
    "default_power_limit_w": ("nvmlDeviceGetPowerManagementDefaultLimit", (), lambda milliwatts: milliwatts / 1e3),
    "persistence_mode": ("nvmlDeviceGetPersistenceMode", (), bool),
    "ecc": ("nvmlDeviceGetEccMode", (), lambda modes: bool(modes[0])),
    "mig": ("nvmlDeviceGetMigMode", (), lambda modes: bool(modes[0])),
    "max_sm_clock_hz": ("nvmlDeviceGetMaxClockInfo", (CLOCKS["sm"],), lambda megahertz: megahertz * 1e6),
    "max_memory_clock_hz": ("nvmlDeviceGetMaxClockInfo", (CLOCKS["memory"],), lambda megahertz: megahertz * 1e6),
    "application_sm_clock_hz": ("nvmlDeviceGetApplicationsClock", (CLOCKS["sm"],), lambda megahertz: megahertz * 1e6),
}


def nvml_facts(device: int | str = 0, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What a record's provenance needs of a GPU: driver, name, power limits, persistence, ECC, MIG, highest clocks.

    A fact that is not known is None, with its reason under "not_known". Where there is no driver the one entry is
    "reason". UserError for a GPU that is not there.
    """
    try:
        nvml = load_nvml()
    except Unavailable as error:
        return {"reason": str(error)}
    try:
        ((label, handle),) = find_gpus(nvml, (device,), environ)
        return _facts(nvml, label, handle)
    except Unavailable as error:
        return {"reason": str(error)}
    finally:
        ask(nvml, "nvmlShutdown")


def _facts(nvml: Any, label: str, handle: Any) -> dict[str, Any]:
    driver, no_driver = ask(nvml, "nvmlSystemGetDriverVersion")
    cuda, no_cuda = ask(nvml, "nvmlSystemGetCudaDriverVersion")
    facts: dict[str, Any] = {
        "driver_version": driver,
        "cuda_driver_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
    }
    reasons = {"driver_version": no_driver, "cuda_driver_version": no_cuda}
    for name, (call, arguments, translate) in _FACTS.items():
        answer, reasons[name] = ask(nvml, call, handle, *arguments)
        facts[name] = translate(answer) if answer is not None else None
    gpu = Gpu(nvml, handle, label)
    facts["power_scope"] = gpu.scope if gpu.why_no_power is None else None
    facts["power_is_averaged"] = gpu.averaged if gpu.why_no_power is None else None
    reasons["power_scope"] = reasons["power_is_averaged"] = gpu.why_no_power
    reasons["energy_counter"] = gpu.counter()[1]
    facts["energy_counter"] = reasons["energy_counter"] is None
    return facts | {"not_known": {name: reason for name, reason in reasons.items() if reason}}
