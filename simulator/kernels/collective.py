"""How long messages between GPUs take: all-reduce by measured kernels, the other collectives by the same physics.

An all-reduce of B bytes on each of w ranks, link L bytes/s per direction:

    custom kernel, one shot    every rank reads all others:          start + (w - 1) B / (f L)
    custom kernel, two shots   reduce-scatter, then all-gather:      start + two-shot sync + 2 (w - 1)/w B / (f L)
    ring (NCCL)                2 (w - 1) steps of B / w bytes:       start + steps + fill + 2 (w - 1)/w B / (f L)
    in the switch (NVLS)       every rank sends B and gets B / w, and back:      start + (1 + 1/w) B / (f L)

Engines use the custom kernel up to a message size, above it the faster of ring and switch. Ring cost: Patarasuk and
Yuan 2009; in-switch cost: each rank's link carries B + B/w per direction when the switch reduces and multicasts. The
structure was checked, and the parameters fitted, on the all-reduce tables of NVIDIA AIConfigurator (vLLM rows).
"""

from __future__ import annotations

import msgspec
import numpy as np

from simulator.device import Device
from simulator.kernels.spec import ParameterSpec


class CollectiveParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the links of a GPU reach, and the fixed costs of its collective kernels; meanings in `SPECS`."""

    start_s: float = 4.4e-6
    rank_s: float = 2e-7
    two_shot_s: float = 2e-6
    custom_fraction: float = 0.62
    ring_start_s: float = 5e-6
    ring_step_s: float = 1.2e-6
    ring_fill_s: float = 2e-5
    ring_fraction: float = 0.75
    switch_start_s: float = 1e-5
    switch_fraction: float = 0.6
    custom_limit_byte: float = 6e6
    custom_limit_exponent: float = 0.0
    host_fraction: float = 0.5
    host_exponent: float = 0.5
    eager_floor_s: float = 2.1e-5
    eager_copy_fraction: float = 0.85


SPECS: dict[str, ParameterSpec] = {
    "start_s": ParameterSpec("s", "custom all-reduce kernel of two ranks, no bytes, in a CUDA graph", 1e-6, 1e-4, 0.5),
    "rank_s": ParameterSpec("s", "added per further rank: flags to write and to wait for", 1e-9, 2e-5, 1.0),
    "two_shot_s": ParameterSpec("s", "second synchronisation of the two-shot kernel", 1e-8, 1e-4, 1.0),
    "custom_fraction": ParameterSpec("1", "share of the link that the custom kernel reaches", 0.05, 0.98, 0.3),
    "ring_start_s": ParameterSpec("s", "start of a ring all-reduce", 1e-7, 1e-3, 0.7),
    "ring_step_s": ParameterSpec("s", "latency of one of its 2 (ranks - 1) steps", 1e-8, 1e-3, 0.7),
    "ring_fill_s": ParameterSpec("s", "filling the ring's pipeline, for messages of many MB", 1e-8, 1e-2, 1.0),
    "ring_fraction": ParameterSpec("1", "share of the link that a ring reaches", 0.02, 0.98, 0.3),
    "switch_start_s": ParameterSpec("s", "start of an all-reduce inside the switch", 1e-7, 1e-3, 0.7),
    "switch_fraction": ParameterSpec("1", "share of the link that it reaches", 0.02, 0.98, 0.3),
    "custom_limit_byte": ParameterSpec("byte", "largest message of the custom kernel, two ranks", 0.0, 1e12, 0.0),
    "custom_limit_exponent": ParameterSpec("1", "that limit falls as (ranks / 2) to minus this", 0.0, 4.0, 0.0),
    "host_fraction": ParameterSpec(
        "1", "without NVLink: share of the link left when more than two GPUs talk through the host", 0.02, 0.98, 0.7
    ),
    "host_exponent": ParameterSpec("1", "and it falls as (ranks / 4) to minus this", 0.01, 3.0, 1.0),
    "eager_floor_s": ParameterSpec("s", "launched one by one, not from a graph: at least this", 1e-6, 1e-3, 0.7),
    "eager_copy_fraction": ParameterSpec("1", "memory bandwidth of the copy that eager calls add", 0.05, 0.98, 0.4),
}

_FILL_BYTE = 4e6  # message at which half of `ring_fill_s` is paid: NCCL's protocols for small messages end there
_SLOWEST_BYTE_PER_S = 1.6e10  # a sheet without any link: PCIe 3.0 x16
_SWITCH_RANKS = 4  # fewer ranks gain nothing from reduction in the switch: 1 + 1/w > 2 (w - 1)/w


def all_reduce_time(byte, world_size: int, device: Device, p: CollectiveParameters, graph: bool = True) -> np.ndarray:
    """Seconds of an all-reduce of `byte` bytes per rank (array) over `world_size` ranks; 0 for one rank.

    `graph`: replayed from a CUDA graph; else launched eagerly, which has a floor and copies the message (read and
    write it once in device memory). Not below 1 x byte / link except inside the switch. Formula: module docstring.
    Not monotone where the library changes kernel (`custom_limit_byte`): there the measured times jump, too.
    """
    byte = np.asarray(byte, dtype=float)
    if world_size == 1:
        return np.zeros(byte.shape)
    limit = p.custom_limit_byte * (world_size / 2.0) ** -p.custom_limit_exponent
    custom_s = _custom_s(byte, world_size, device, p)
    large_s = _ring_s(byte, world_size, device, p)
    if reduces_in_switch(device) and world_size >= _SWITCH_RANKS:
        large_s = np.minimum(large_s, _switch_s(byte, world_size, device, p))
    if through_host(device, world_size):
        custom_s = large_s  # the custom kernel needs every pair connected
    seconds = np.where(byte <= limit, custom_s, large_s)
    if graph:
        return seconds
    copy_s = 2.0 * byte / (p.eager_copy_fraction * device.memory.bandwidth_byte_per_s)
    return np.maximum(p.eager_floor_s, seconds + copy_s)


def all_gather_time(byte, world_size: int, device: Device, p: CollectiveParameters) -> np.ndarray:
    """Seconds until every rank has the `byte` bytes of each of `world_size` ranks: half a ring all-reduce.

    Physics only (no table of it): w - 1 steps, each rank receives (w - 1) x byte.
    """
    byte = np.asarray(byte, dtype=float)
    if world_size == 1:
        return np.zeros(byte.shape)
    steps = world_size - 1
    flow_s = steps * byte / _link(device, world_size, p.ring_fraction, p)
    return p.ring_start_s + steps * p.ring_step_s + _fill_s(steps * byte, p) + flow_s


def all_to_all_time(byte, world_size: int, device: Device, p: CollectiveParameters) -> np.ndarray:
    """Seconds until every rank has sent its `byte` bytes, an equal part to each of `world_size` ranks (itself too).

    Physics only (no table of it): (w - 1)/w of the bytes cross the link, with the ring's start and one step.
    """
    byte = np.asarray(byte, dtype=float)
    if world_size == 1:
        return np.zeros(byte.shape)
    flow_s = (world_size - 1) / world_size * byte / _link(device, world_size, p.ring_fraction, p)
    return p.ring_start_s + p.ring_step_s + _fill_s(byte, p) + flow_s


def point_to_point_time(byte, device: Device, p: CollectiveParameters) -> np.ndarray:
    """Seconds to send `byte` bytes to one neighbour (pipeline stages). Physics only: start, one step, bytes / link."""
    byte = np.asarray(byte, dtype=float)
    return p.ring_start_s + p.ring_step_s + byte / _link(device, 2, p.ring_fraction, p)


def _custom_s(byte, world_size: int, device: Device, p: CollectiveParameters) -> np.ndarray:
    """One-shot or two-shot kernel, whichever is faster."""
    flow_s = byte / _link(device, world_size, p.custom_fraction, p)
    one_shot_s = (world_size - 1) * flow_s
    two_shot_s = p.two_shot_s + 2.0 * (world_size - 1) / world_size * flow_s
    return p.start_s + (world_size - 2) * p.rank_s + np.minimum(one_shot_s, two_shot_s)


def _ring_s(byte, world_size: int, device: Device, p: CollectiveParameters) -> np.ndarray:
    """Reduce-scatter and all-gather around a ring."""
    flow_s = 2.0 * (world_size - 1) / world_size * byte / _link(device, world_size, p.ring_fraction, p)
    return p.ring_start_s + 2 * (world_size - 1) * p.ring_step_s + _fill_s(byte, p) + flow_s


def _switch_s(byte, world_size: int, device: Device, p: CollectiveParameters) -> np.ndarray:
    """Reduction and multicast by the switch."""
    return p.switch_start_s + (1.0 + 1.0 / world_size) * byte / _link(device, world_size, p.switch_fraction, p)


def _fill_s(byte, p: CollectiveParameters) -> np.ndarray:
    return p.ring_fill_s * byte / (byte + _FILL_BYTE)


def reduces_in_switch(device: Device) -> bool:
    """NVSwitch of the fourth NVLink generation on (Hopper, Blackwell) adds up messages by itself."""
    kind = device.interconnect.kind
    return kind.startswith("nvlink") and kind[6:].isdigit() and int(kind[6:]) >= 4


def through_host(device: Device, world_size: int) -> bool:
    """More than two GPUs without NVLink (or its like) share the host's bridges."""
    return world_size > 2 and not device.interconnect.kind.startswith(("nvlink", "infinity", "xgmi"))


def _link(device: Device, world_size: int, fraction: float, p: CollectiveParameters) -> float:
    """Bytes per second of one rank's link in one direction that a kernel reaches."""
    links = device.interconnect
    byte_per_s = links.scale_up_byte_per_s or links.pcie_byte_per_s or _SLOWEST_BYTE_PER_S
    if through_host(device, world_size):
        fraction = fraction * p.host_fraction * (world_size / 4.0) ** -p.host_exponent
    return fraction * byte_per_s
