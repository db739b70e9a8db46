"""A data sheet of the processor at hand, so that it can be calibrated like a GPU: measured where that is possible.

Bandwidth is that of a large copy or read, peaks are those of large matrix products, both the best of several, on as
many threads as the runs use. What nobody can measure here (power) stands in the sheet because its reader demands a
figure, and its source says that it is assumed.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from calibration.collect import provenance
from calibration.collect.backends.torch_quiet import QUIET, TRIES, quietest
from calibration.collect.point import BackendError
from calibration.collect.power.system_files import system_text
from calibration.collect.to_records import replace_file
from calibration.write import toml_value
from simulator.device import load_device
from simulator.errors import UserError

GPU = "host-cpu"  # the name by which users ask for the machine at hand, and the sheet's id
FILE = f"{GPU}.toml"
UNKNOWN = "unknown processor"
COPY_BYTE = 256 * 2**20  # far beyond any cache, and read and written in some 30 ms
PRODUCT = 1536  # rows, inner and outer size of the matrices: large enough for the full rate
ROUNDS = 4
LEAST_CALLS, LEAST_S = 3, 0.2  # in each round
HELD_UP = 0.25  # of the time: a sheet that was measured so is far too slow, and stays in its folder
ASSUMED_LIMIT_W, ASSUMED_IDLE_W = 100.0, 30.0
ASSUMED_CACHE_BYTE = 8 * 2**20
ASSUMED_CLOCK_HZ = 2.5e9


@dataclass(frozen=True)
class Rates:
    """What was measured: bytes and FLOPs per second. `bf16_flop_per_s` None: no faster than fp32.

    `waited`: share of the time that other work held up a thread; None: not known.
    """

    threads: int
    copy_byte_per_s: float
    read_byte_per_s: float
    fp32_flop_per_s: float
    bf16_flop_per_s: float | None
    torch_version: str
    waited: float | None = None

    def better(self, other: Rates) -> Rates:
        """The higher of each rate: of two times, a machine that does other things too may have been free at one."""
        bf16 = max(self.bf16_flop_per_s or 0.0, other.bf16_flop_per_s or 0.0)
        fp32 = max(self.fp32_flop_per_s, other.fp32_flop_per_s)
        return replace(
            self,
            copy_byte_per_s=max(self.copy_byte_per_s, other.copy_byte_per_s),
            read_byte_per_s=max(self.read_byte_per_s, other.read_byte_per_s),
            fp32_flop_per_s=fp32,
            bf16_flop_per_s=bf16 if bf16 > fp32 else None,
            waited=None if self.waited is None or other.waited is None else min(self.waited, other.waited),
        )


def ensure_host_sheet(folder: str | Path, threads: int | None = None) -> Path:
    """The sheet of this machine in `folder`, measured now if none is there (some seconds).

    `threads`: of PyTorch (default: its own choice). UserError when a sheet that is there cannot be read or was measured
    on another number of threads or another processor, when the machine is too busy to be measured, when the folder
    cannot be written, or without PyTorch.
    """
    path = Path(folder) / FILE
    if not path.exists():
        rates = measure_rates(threads)
        if rates.waited is not None and rates.waited > HELD_UP:
            fewer = ", or take fewer threads (--set threads=1)" if rates.threads > 1 else ""
            raise BackendError(
                "the data sheet of this machine was not measured, as other work held up a thread for "
                f"{rates.waited:.0%} of the time; end that work{fewer}"
            )
        return write_host_sheet(folder, rates)
    found = load_device(path)
    threads, name = threads or _default_threads(), provenance.host().get("cpu") or UNKNOWN
    for what, there, here in (("threads", found.compute.sm_count, threads), ("processor", found.name, name)):
        if there != here:
            raise UserError(
                f"'{path}' was measured with {what} = {there}, now it is {here}; remove it, or give another folder"
            )
    return path


def _default_threads() -> int:
    """How many threads PyTorch takes if nobody says otherwise. BackendError without it."""
    return _torch().get_num_threads()


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise BackendError("a host-cpu data sheet is measured with the package 'torch', which is missing") from None
    return torch


def write_host_sheet(folder: str | Path, rates: Rates) -> Path:
    """Write the sheet with these rates into `folder`. UserError when that cannot be done."""
    path = Path(folder) / FILE
    text = sheet_text(rates, *_machine())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{path.parent}' cannot be made a folder: {error.strerror}") from None
    replace_file(path, text.encode())
    load_device(path)
    return path


def measure_rates(threads: int | None = None, tries: int = TRIES) -> Rates:
    """Bandwidth and peaks of this machine, `tries` times at most where other work held it up.

    BackendError without PyTorch.
    """
    torch = _torch()
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            seconds, waited = quietest(lambda: best_seconds(_works()), tries)
        fp32, bf16 = (2.0 * PRODUCT**3 / seconds[name] for name in ("fp32", "bf16"))
        return Rates(
            torch.get_num_threads(), 2.0 * COPY_BYTE / seconds["copy"], COPY_BYTE / seconds["read"], fp32,
            bf16 if bf16 > fp32 else None, torch.__version__, waited,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def _works() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import torch

    source = torch.ones(COPY_BYTE // 4)
    target = torch.empty_like(source)
    products = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.ones(PRODUCT, PRODUCT, dtype=dtype) for _ in range(2))
        products[name] = partial(torch.mm, left, right, out=torch.empty_like(left))
    return {"copy": partial(target.copy_, source), "read": source.sum, **products}


def best_seconds(
    works: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The shortest of several calls of each of `works`, after one that is not counted.

    They take turns, so that a second in which something else runs does not fall on one of them alone.
    """
    best = dict.fromkeys(works, math.inf)
    for work in works.values():
        work()
    for _ in range(ROUNDS):
        for name, work in works.items():
            spent, calls = 0.0, 0
            while spent < LEAST_S or calls < LEAST_CALLS:
                start = clock()
                work()
                took = clock() - start
                best[name] = min(best[name], took)
                spent, calls = spent + took, calls + 1
    return best


@dataclass(frozen=True)
class Figure:
    """A figure of the sheet and where it is from."""

    value: float
    source: str


def _machine() -> tuple[str, int, Figure, Figure]:
    """(name of the processor, bytes of memory, clock, last-level cache) as the system tells them."""
    host = provenance.host()
    memory_byte = host.get("memory_byte")
    if not memory_byte:
        raise BackendError("the system does not tell how much memory it has, which a host-cpu data sheet must state")
    return host.get("cpu") or UNKNOWN, int(memory_byte), _clock_hz(), _cache_byte()


def _clock_hz() -> Figure:
    """The highest clock that the system states."""
    limit_khz = system_text("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if limit_khz and limit_khz.isdecimal():
        return Figure(float(limit_khz) * 1e3, "the system's highest clock of core 0")
    now_mhz = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", system_text("/proc/cpuinfo") or "", re.MULTILINE)
    if now_mhz and max(map(float, now_mhz)) > 0.0:
        return Figure(max(map(float, now_mhz)) * 1e6, "/proc/cpuinfo at the time of measuring")
    return Figure(ASSUMED_CLOCK_HZ, "unknown; assumed")


def _cache_byte() -> Figure:
    """The largest cache of core 0: what the GPUs' second level is, the last one before memory."""
    sizes = []
    for index in range(5):
        text = system_text(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size") or ""
        if found := re.fullmatch(r"(\d+)([KM])", text):
            sizes.append(int(found.group(1)) * {"K": 2**10, "M": 2**20}[found.group(2)])
    if sizes:
        return Figure(max(sizes), "the system's last-level cache of core 0; it may be shared with other cores")
    return Figure(ASSUMED_CACHE_BYTE, "unknown; assumed")


def sheet_text(rates: Rates, name: str, memory_byte: int, clock: Figure, cache: Figure) -> str:
    """The sheet as TOML in the format of `hwspecs/README.md`."""
    how = f"measured on {rates.threads} thread{'s' * (rates.threads > 1)} with PyTorch {rates.torch_version}"
    if rates.waited is not None and rates.waited > QUIET:
        how += f" (other work held up a thread for {rates.waited:.0%} of the time)"
    peaks = {"fp32": rates.fp32_flop_per_s, "fp16": rates.fp32_flop_per_s}
    if rates.bf16_flop_per_s:
        peaks["bf16"] = rates.bf16_flop_per_s
    megabyte = COPY_BYTE // 2**20
    sources = {
        "memory.capacity_byte": "the system's total memory",
        "memory.bandwidth_byte_per_s": f"{how}: the better of a copy of {megabyte} MiB, read and written bytes counted "
        f"({rates.copy_byte_per_s / 1e9:.2f} GB/s), and of reading them ({rates.read_byte_per_s / 1e9:.2f} GB/s), each "
        "the best of several; what is reached, not the rate of the pins",
        "compute.sm_count": "threads in use",
        "compute.clock_hz": clock.source,
        "compute.l2_byte": cache.source,
        "compute.peak_flop_per_s": f"{how}: product of two {PRODUCT} x {PRODUCT} matrices, the best of several; bf16 "
        f"{'likewise' if rates.bf16_flop_per_s else 'left out, as it is no faster'}; fp16 assumed equal to fp32, as "
        "every sheet must state it and PyTorch has no fast product of that type on processors",
        "power": f"unknown: nothing measures it here; {ASSUMED_LIMIT_W:g} W and {ASSUMED_IDLE_W:g} W are assumed, as "
        "every sheet must state them, so energies on this device mean nothing",
    }  # fmt: skip
    tables = {
        "": {
            "id": GPU, "name": name, "vendor": _vendor(name), "architecture": "cpu", "form_factor": "host",
        },
        "memory": {
            "kind": "system memory", "capacity_byte": memory_byte,
            "bandwidth_byte_per_s": max(rates.copy_byte_per_s, rates.read_byte_per_s), "unified": True,
        },
        "compute": {"sm_count": rates.threads, "clock_hz": clock.value, "l2_byte": int(cache.value)},
        "compute.peak_flop_per_s": peaks,
        "power": {"limit_w": ASSUMED_LIMIT_W, "idle_w": ASSUMED_IDLE_W},
    }  # fmt: skip
    lines = [f"# The processor at hand, {how}. Remove this file to measure it anew."]
    for title, table in tables.items():
        lines += ["", *([f"[{title}]"] if title else [])]
        lines += [f"{key} = {toml_value(value)}" for key, value in table.items()]
    lines += ["", "[sources]", *(f"{toml_value(field)} = {toml_value(text)}" for field, text in sources.items())]
    return "\n".join(lines) + "\n"


def _vendor(name: str) -> str:
    """The maker of a processor, from its name."""
    known = {"amd": "AMD", "intel": "Intel", "apple": "Apple", "arm": "Arm", "cortex": "Arm", "neoverse": "Arm"}
    return next((vendor for word, vendor in known.items() if word in name.lower()), "unknown")
