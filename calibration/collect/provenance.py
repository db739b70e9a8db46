"""Where a measurement was made: software, driver, board, host. What checks of configuration and validity ask for.

No names of people, machines or folders, and of the environment only the variables that steer engines.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calibration.collect.power import jetson_facts, nvml_facts
from simulator.device import Device
from simulator.errors import UserError
from simulator.scenario import installed_version

LIMIT_TOLERANCE = 0.05  # of a power limit against the data sheet: less is rounding
PACKAGES = ("torch", "vllm", "transformers", "numpy", "flashinfer-python", "flash-attn", "triton", "nvidia-ml-py")
# Variables that change what an engine does. Everything else, keys and tokens above all, stays out of records.
_VARIABLES = re.compile(
    r"(VLLM_(ATTENTION_BACKEND|ENABLE_V1_MULTIPROCESSING|USE_V1|USE_[A-Z0-9_]+|ALLOW_[A-Z0-9_]+)"
    r"|CUDA_VISIBLE_DEVICES|CUDA_LAUNCH_BLOCKING|CUDA_DEVICE_MAX_CONNECTIONS|NCCL_(ALGO|PROTO|P2P_DISABLE)"
    r"|OMP_NUM_THREADS|MKL_NUM_THREADS|PYTORCH_CUDA_ALLOC_CONF|TORCH_NUM_THREADS)"
)
_SECRET = re.compile(r"(^|_)(api_?key|key|auth\w*|hf_token|token|secret|password|credentials?)$", re.IGNORECASE)


def provenance(devices: Sequence[int] = (0,)) -> dict[str, Any]:
    """Everything about the machine that a record must be able to tell. What cannot be known is left out."""
    return {
        "time": now(),
        "software": software(),
        "host": host(),
        "board": board(devices),
        "environment": variables(os.environ),
    }


def board(devices: Sequence[int] = (0,)) -> dict[str, Any]:
    """What driver and firmware say of the board: NVML's facts of each GPU, or those of a Jetson, or why not.

    Serial numbers stay out.
    """
    jetson = {name: value for name, value in jetson_facts().items() if value}
    if jetson.get("power_mode") or jetson.get("rails"):
        return {"jetson": jetson}
    try:
        found = [nvml_facts(device) for device in devices]
    except UserError as error:  # fewer GPUs than asked for: the engine has its own word on that
        return {"reason": str(error)}
    return {"gpus": [{name: value for name, value in facts.items() if name != "uuid"} for facts in found]}


def now() -> str:
    """The time of day, UTC, to a second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def software() -> dict[str, str]:
    """Versions of what measures and of what is measured, as installed; nothing is imported."""
    found = {"tokenflight": installed_version(), "python": platform.python_version(), "kernel": platform.release()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """The processor, its cores, its memory in bytes, and how it is clocked."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
    memory = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo") or "")
    found["memory_byte"] = int(memory.group(1)) * 1024 if memory else None
    return {key: value for key, value in found.items() if value is not None}


def _cpu_name() -> str | None:
    text = _text("/proc/cpuinfo") or ""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    model = found.group(1).strip() if found else platform.processor()
    return model or _text("/proc/device-tree/model")


def _text(path: str) -> str | None:
    """The content of a small system file; None when it is not there or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the environment that steer engines."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if _VARIABLES.fullmatch(name) and not looks_secret(name)
    }


def looks_secret(name: str) -> bool:
    """Whether a variable or setting of this name may hold a key or password."""
    return _SECRET.search(name) is not None


def surroundings() -> dict[str, Any]:
    """What may change from point to point on the host: time of day and load."""
    try:
        load = round(os.getloadavg()[0], 2)
    except OSError:
        load = None
    return {"time": now(), "load_1min": load}


def check_board(device: Device, found: Mapping[str, Any]) -> list[str]:
    """Warnings where the board in the machine may not be the one of the data sheet.

    UserError when a Jetson is in another power mode than the one that is asked for.
    """
    warnings = []
    mode = found.get("jetson", {}).get("power_mode")
    if mode and device.power_modes and _mode_id(device, mode) != device.power_mode:
        raise UserError(
            f"the board is in power mode {mode}, expected {device.power_mode}; set it, or give --power-mode"
        )
    for gpu in found.get("gpus", []):
        name, capability = gpu.get("name"), gpu.get("compute_capability")
        if capability and device.compute_capability and capability != device.compute_capability:
            warnings.append(f"the GPU is '{name}' of compute capability {capability}, the data sheet {device.id} is of "
                            f"{device.compute_capability}")  # fmt: skip
        limit_w = gpu.get("power_limit_w")
        if limit_w and abs(limit_w / device.power.limit_w - 1.0) > LIMIT_TOLERANCE:
            warnings.append(
                f"the GPU's power limit is {limit_w:.0f} W, the data sheet says {device.power.limit_w:.0f} W"
            )
        if gpu.get("mig"):
            warnings.append("the GPU is split by MIG: what is measured is not the GPU of the data sheet")
    if found.get("jetson", {}).get("clocks_locked") is False:
        warnings.append("clocks are not locked (jetson_clocks): they follow the load, and short runs come out slow")
    return list(dict.fromkeys(warnings))


def _mode_id(device: Device, mode: str) -> str:
    """The sheet's name of a mode; the board's own where the sheet does not know it."""
    try:
        return device.find_mode(mode).name
    except UserError:
        return mode


def command_line(arguments: list[str] | None = None) -> str:
    """The command as typed, folders and credentials left out, so that a record says how to make it again."""
    return " ".join(["calibrate", *map(_harmless, sys.argv[1:] if arguments is None else arguments)])


def _harmless(word: str) -> str:
    if "://" in word:
        return without_secrets(word)
    return Path(word).name if word.startswith(("/", "~")) else word


def without_secrets(url: str) -> str:
    """An address without user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
