"""What a user asks of a measurement: checked, and in the form that a journal keeps to compare a resumption with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from calibration.collect.backends import BACKENDS, BackendOptions
from calibration.collect.grid import Grid
from calibration.collect.host_sheet import GPU as HOST
from calibration.collect.host_sheet import ensure_host_sheet
from calibration.collect.load_options import load_of
from calibration.collect.loads import Trace
from calibration.collect.provenance import looks_secret, without_secrets
from simulator.device import Device, load_device
from simulator.errors import UserError, unknown_name
from simulator.instance import InstanceChoice, engine_version
from simulator.model import Model, load_model

GRAPHS: dict[str | None, tuple[bool | None, ...]] = {
    None: (None,), "on": (True,), "off": (False,), "both": (True, False),
}  # fmt: skip
SERVERS = ("openai", "vllm-bench")  # back-ends behind which any engine may be
TEXTS = ("engine", "engine_version")  # settings that are never numbers: 0.10 is another version than 0.1
# Settings that the simulator's engine has, too, under vLLM's names: a plan takes them into account.
PLANNED = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization", "block_size")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One measurement as asked for, names looked up. `gpu`: as records name it, an id or the path of a sheet."""

    backend: str
    model: Model
    model_name: str
    device: Device
    gpu: str
    power_mode: str | None  # as records state it
    where: str | None  # "cpu" | "cuda"
    dtype: str | None
    engine: str
    version: str | None
    stated_engine: str | None  # as the user names it, for back-ends that do not know it
    base_url: str | None
    allow_remote: bool
    dummy_weights: bool
    graphs: tuple[bool | None, ...]
    tensor_parallel_size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    load: str
    grid: Grid | None
    trace: Trace | None
    minutes: float
    repeats: int
    held_out: int | None
    seconds_per_point: float | None
    meter: str | None
    seed: int

    @property
    def chosen(self) -> bool:
        """Whether the plan is made to fit into `minutes`, rather than by the user."""
        return self.grid is None or (self.load == "open_loop" and not self.grid.rates)

    @property
    def options(self) -> BackendOptions:
        """What the back-end needs to know."""
        stated = {}
        if self.stated_engine and self.backend in SERVERS:
            engine, version = engine_version(self.stated_engine)
            stated = {"engine": engine, **({"engine_version": version} if version else {})}
        return BackendOptions(
            model=self.model_name, gpu=self.device.id, device=self.where, dtype=self.dtype, seed=self.seed,
            base_url=self.base_url, allow_remote=self.allow_remote, dummy_weights=self.dummy_weights,
            cuda_graphs=self.graphs[0], tensor_parallel_size=self.tensor_parallel_size,
            settings={**stated, **self.settings}, trace=self.trace,
        )  # fmt: skip

    @property
    def instance(self) -> InstanceChoice:
        """The engine as the simulator would build it."""
        default = "fp32" if self.where == "cpu" else None  # what processors compute in
        return InstanceChoice(
            gpu=self.gpu,
            model=self.model_name,
            weights=self.dtype or default,
            power_mode=self.power_mode,
            engine_settings={name: self.settings[name] for name in PLANNED if name in self.settings},
            enforce_eager=self.graphs == (False,),
            tensor_parallel_size=self.tensor_parallel_size,
            engine=f"{self.engine}:{self.version}" if self.version else self.engine,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values without credentials: equal for two commands that ask for the same measurement."""
        return {
            "backend": self.backend, "model": self.model_name, "gpu": self.device.id, "sheet": _hash(self.device),
            "power_mode": self.power_mode, "device": self.where, "dtype": self.dtype,
            "base_url": self.base_url and without_secrets(self.base_url), "dummy_weights": self.dummy_weights,
            "cuda_graphs": list(self.graphs), "tensor_parallel_size": self.tensor_parallel_size,
            "settings": dict(self.settings), "engine": self.stated_engine, "load": self.load,
            "trace": self.trace and _trace_facts(self.trace),
            "grid": self.grid and msgspec.to_builtins(self.grid), "minutes": self.minutes, "repeats": self.repeats,
            "held_out": self.held_out, "seconds_per_point": self.seconds_per_point, "meter": self.meter,
            "seed": self.seed,
        }  # fmt: skip


def asked_of(options: Mapping[str, Any], folder: Path | None = None) -> Asked:
    """What the options of the command ask for. UserError for names that are not known and what goes not together.

    folder: where the data sheet of this machine is, or is to be, when it is asked for as a GPU (host-cpu).
    """
    backend = options["backend"]
    if backend not in BACKENDS:
        raise unknown_name("back-end", backend, BACKENDS, f"expected one of {', '.join(BACKENDS)}")
    settings = _settings(options["settings"])
    gpu = options["gpu"] if options["gpu"] != HOST else _host_sheet(folder, settings)
    device = load_device(gpu, options["power_mode"])
    engine, version = _engine(options["engine"], backend)
    load = load_of(options, backend)
    sheet = gpu.lower().endswith(".toml") or "/" in gpu
    return Asked(
        backend=backend,
        model=load_model(options["model"]),
        model_name=options["model"],
        device=device,
        gpu=gpu if sheet else device.id,
        power_mode=device.power_mode or options["power_mode"],
        where=options["device"] or ("cpu" if options["gpu"] == HOST else None),
        dtype=options["dtype"],
        engine=engine,
        version=version or installed(backend),
        stated_engine=options["engine"],
        base_url=options["base_url"],
        allow_remote=options["allow_remote"],
        dummy_weights=options["dummy_weights"],
        graphs=GRAPHS[options["cuda_graphs"]],
        tensor_parallel_size=options["tensor_parallel_size"],
        settings=settings,
        load=load.kind,
        grid=load.grid,
        trace=load.trace,
        minutes=options["minutes"],
        repeats=options["repeats"],
        held_out=options["held_out"],
        seconds_per_point=options["seconds_per_point"],
        meter=options["meter"],
        seed=options["seed"],
    )


def _host_sheet(folder: Path | None, settings: Mapping[str, Any]) -> str:
    """The data sheet of this machine's processor, in the measurement's folder; measured when it is not there."""
    if folder is None:
        raise UserError(f"--gpu {HOST} needs --out: the data sheet of this machine is measured and kept there")
    return str(ensure_host_sheet(folder, threads=settings.get("threads")))


def _engine(stated: str | None, backend: str) -> tuple[str, str | None]:
    """(engine, version) to plan for: as stated, else the back-end's own. UserError where they contradict each other."""
    own = "transformers" if backend == "transformers" else "vllm"
    engine, version = engine_version(stated or own)
    if stated and engine != own and backend in ("vllm", "transformers"):
        raise UserError(f"--engine {stated}: back-end {backend} is an engine of its own, expected --backend openai")
    return engine or own, version


def installed(backend: str) -> str | None:
    """The version of the engine that is installed here; None for a server, or without the package."""
    from importlib import metadata

    try:
        return metadata.version(backend) if backend in ("vllm", "transformers") else None
    except metadata.PackageNotFoundError:
        return None


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings from NAME=VALUE: numbers, true, false and JSON as such, everything else as text."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise UserError(f"--set {word}: expected NAME=VALUE, like max_num_seqs=64")
        if looks_secret(name):
            raise UserError(f"--set {name}: keys and passwords come from the environment only, and are never recorded")
        try:
            found[name] = value if name in TEXTS else json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _trace_facts(trace: Trace) -> dict[str, Any]:
    """What identifies a trace, without folders."""
    return {
        "name": trace.name, "sha256": trace.sha256, "format": trace.format, "speed": trace.speed,
        "output_tok": trace.output_tok, "timed": trace.rate_rps is not None,
    }  # fmt: skip


def _hash(device: Device) -> str:
    """Sixteen digits of the data sheet's content: an edited sheet is another one."""
    return hashlib.sha256(msgspec.json.encode(device)).hexdigest()[:16]
