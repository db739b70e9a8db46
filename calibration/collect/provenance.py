"""Where a measurement was made: software, driver, board, host. What checks of configuration and validity ask for.

No names of people, machines or folders, and of the environment only the variables that steer engines.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from calibration.collect.power import jetson_facts, nvml_facts
from calibration.collect.power.system_files import system_text
from simulator.errors import UserError
from simulator.scenario import installed_version

PACKAGES = ("torch", "vllm", "transformers", "numpy", "flashinfer-python", "flash-attn", "triton", "nvidia-ml-py")
# Variables that change what an engine does. Everything else, keys and tokens above all, stays out of records.
_VARIABLES = re.compile(
    r"(VLLM_(ATTENTION_BACKEND|ENABLE_V1_MULTIPROCESSING|USE_V1|USE_[A-Z0-9_]+|ALLOW_[A-Z0-9_]+)"
    r"|CUDA_VISIBLE_DEVICES|CUDA_LAUNCH_BLOCKING|CUDA_DEVICE_MAX_CONNECTIONS|NCCL_(ALGO|PROTO|P2P_DISABLE)"
    r"|OMP_NUM_THREADS|MKL_NUM_THREADS|PYTORCH_CUDA_ALLOC_CONF|TORCH_NUM_THREADS)"
)
_SECRET = re.compile(
    r"(^|_)(api_?keys?|keys?|key_id|auth\w*|bearer|cookie|token|secrets?|pass(wd|word|phrase)?|pwd|credentials?)$",
    re.IGNORECASE,
)
_UUID = re.compile(r"\b(MIG-GPU|MIG|GPU)-[0-9a-fA-F]+[0-9a-fA-F/-]*")  # as good as a serial number


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
    jetson = {name: value for name, value in jetson_facts().items() if value not in (None, [])}
    if jetson.get("power_mode") or jetson.get("rails"):
        return {"jetson": jetson}
    try:
        found = [nvml_facts(device) for device in devices]
    except UserError as error:  # fewer GPUs than asked for: the engine has its own word on that
        return {"reason": str(error)}
    return {"gpus": [{name: value for name, value in facts.items() if name != "uuid"} for facts in found]}


@functools.cache  # both stay as they are while a process uses them
def gpu_and_driver() -> tuple[str | None, str | None]:
    """(Name of the first GPU, version of its driver): with others a measurement must not go on. None: not known."""
    try:
        found = nvml_facts()
    except UserError:  # a GPU that NVML does not find; the engine has its own word on that
        return None, None
    return found.get("name"), found.get("driver_version")


def now() -> str:
    """The time of day, UTC, to a second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_name(asked: Mapping[str, Any]) -> str:
    """Day and eight digits: the name of a measurement that begins now, which no other has."""
    digest = hashlib.sha256(repr((time.time_ns(), os.getpid(), asked)).encode()).hexdigest()
    return f"{now()[:10].replace('-', '')}-{digest[:8]}"


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
        "governor": system_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
    memory = re.search(r"MemTotal:\s+(\d+) kB", system_text("/proc/meminfo") or "")
    found["memory_byte"] = int(memory.group(1)) * 1024 if memory else None
    return {key: value for key, value in found.items() if value is not None}


def _cpu_name() -> str | None:
    text = system_text("/proc/cpuinfo") or ""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    model = found.group(1).strip() if found else platform.processor()
    return model or system_text("/proc/device-tree/model")


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the environment that steer engines; GPUs that are named by their UUID stay unnamed."""
    return {
        name: _UUID.sub(r"\1-UUID", value)
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


def command_line(arguments: list[str] | None = None) -> str:
    """The command as typed, folders and credentials left out, so that a record says how to make it again."""
    return " ".join(["calibrate", *map(_harmless, sys.argv[1:] if arguments is None else arguments)])


def _harmless(word: str) -> str:
    """A word of a command without folders and credentials; of NAME=VALUE the value is looked at alone."""
    name, equals, value = word.partition("=")
    if equals and "://" not in name:
        return f"{name}={_harmless(value)}"
    if "://" in word or "@" in word:
        return without_secrets(word)
    folders = word.startswith(("/", "~", ".")) or ("/" in word and Path(word).exists())
    return (Path(word).name or word) if folders else word


def without_secrets(url: str) -> str:
    """An address without user, password, query and fragment, also one that is not well formed."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{re.split('[?#]', rest.rpartition('@')[2])[0]}"
