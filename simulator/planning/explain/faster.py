"""Hardware that is faster in one respect: other figures of the data sheet, shorter times of the calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from msgspec.structs import replace as with_fields

from simulator.device import Device, Interconnect
from simulator.instance import Instance
from simulator.kernels.collective import _SLOWEST_BYTE_PER_S
from simulator.parameters import SPECS, flatten, with_values
from simulator.planning.explain.accounts import rebuilt
from simulator.profile import Calibration
from simulator.profile_parts import HOST_TIMES

FASTER = 1.1  # every change is of 10 %

BANDWIDTH, FLOPS, LATENCY, LINK, HOST, LIMIT = "bandwidth", "flops", "latency", "link", "host", "power limit"
# Together they are all that takes time; no two of them share anything.
RESOURCES = (BANDWIDTH, FLOPS, LATENCY, LINK, HOST)
HOST_SECONDS = tuple(f"engine.{name}" for name in HOST_TIMES)
# Every other time of a calibration: starts of kernels, gaps between them, latencies of messages.
KERNEL_SECONDS = tuple(name for name, spec in SPECS.items() if spec.unit in ("s", "s/tok") and name not in HOST_SECONDS)
AnyInstance = TypeVar("AnyInstance", bound=Instance)


@dataclass(frozen=True)
class Hardware:
    """A change of hardware. `of`: the resources that are FASTER times as fast (the limit: as high)."""

    name: str
    title: str
    of: tuple[str, ...]
    busy_power: bool = False  # clocks cost power even where nothing is computed


HARDWARE = (
    Hardware("bandwidth", "memory bandwidth +10 %", (BANDWIDTH,)),
    Hardware("flops", "FLOPS +10 % (peaks, arithmetic of attention)", (FLOPS,)),
    Hardware("clock", "GPU core clock +10 % (FLOPS, kernel latencies, busy power)", (FLOPS, LATENCY), True),
    Hardware("latency", "kernel latencies 10 % shorter (starts, gaps, messages)", (LATENCY,)),
    Hardware("link", "link bandwidth +10 %", (LINK,)),
    Hardware("host", "host 10 % faster (scheduling, launches, HTTP)", (HOST,)),
    Hardware("all", "all hardware 10 % faster (bandwidth, FLOPS, latencies, links, host)", RESOURCES),
    Hardware("power_limit", "power limit +10 %", (LIMIT,)),
)


def faster_device(device: Device, of: tuple[str, ...]) -> Device:
    """The data sheet with resources `of` raised; figures that a resource does not concern stay."""
    memory, compute, power, link = device.memory, device.compute, device.power, device.interconnect
    if BANDWIDTH in of:
        memory = with_fields(memory, bandwidth_byte_per_s=FASTER * memory.bandwidth_byte_per_s)
    if FLOPS in of:
        peaks = {dtype: FASTER * peak for dtype, peak in compute.peak_flop_per_s.items()}
        compute = with_fields(compute, peak_flop_per_s=peaks, clock_hz=FASTER * compute.clock_hz)
    if LINK in of:
        link = _faster_link(link)
    if LIMIT in of:
        power = with_fields(power, limit_w=min(FASTER * power.limit_w, power.board_limit_w or power.limit_w))
    return with_fields(device, memory=memory, compute=compute, power=power, interconnect=link)


def _faster_link(link: Interconnect) -> Interconnect:
    """A sheet without any link stands for the slowest one, as the kernels of messages take it."""
    rates = {name: getattr(link, name) for name in ("scale_up_byte_per_s", "pcie_byte_per_s")}
    if not any(rates.values()):
        rates["pcie_byte_per_s"] = _SLOWEST_BYTE_PER_S
    return with_fields(link, **{name: rate and FASTER * rate for name, rate in rates.items()})


def faster_calibration(calibration: Calibration, of: tuple[str, ...], busy_power: bool = False) -> Calibration:
    """The calibration with its times shortened as far as `of` says; shares of rates stay as they were fitted."""
    values = flatten(calibration.parameters)
    names = (*(KERNEL_SECONDS if LATENCY in of else ()), *(HOST_SECONDS if HOST in of else ()))
    changed = {name: values[name] / FASTER for name in names}
    if busy_power:
        changed["power.busy_w"] = FASTER * values["power.busy_w"]
    return with_fields(calibration, parameters=with_values(calibration.parameters, changed))


def faster_instance(instance: AnyInstance, hardware: Hardware) -> AnyInstance:
    """The same engine on changed hardware; what fits into memory stays."""
    device = faster_device(instance.device, hardware.of)
    calibration = faster_calibration(instance.calibration, hardware.of, hardware.busy_power)
    physics = rebuilt(instance.step_model, device, calibration)
    return replace(instance, device=device, calibration=calibration, step_model=physics)


def more_memory(instance: AnyInstance) -> AnyInstance:
    """The same engine with FASTER times the blocks of KV cache, at least one more."""
    memory = instance.memory
    blocks = max(memory.kv_blocks + 1, round(FASTER * memory.kv_blocks))
    return replace(instance, memory=replace(memory, kv_blocks=blocks))


def capped(device: Device) -> bool:
    """Whether there is a power limit below the board's own."""
    return device.power.limit_w < (device.power.board_limit_w or device.power.limit_w)
