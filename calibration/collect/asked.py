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
from calibration.collect.grid import LOADS, Grid
from calibration.collect.host_sheet import GPU as HOST
from calibration.collect.host_sheet import ensure_host_sheet
from calibration.collect.provenance import looks_secret, without_secrets
from simulator.device import Device, load_device
from simulator.errors import UserError, unknown_name
from simulator.instance import InstanceChoice, engine_version
from simulator.model import Model, load_model

GRAPHS: dict[str | None, tuple[bool | None, ...]] = {
    None: (None,), "on": (True,), "off": (False,), "both": (True, False),
}  # fmt: skip
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
    base_url: str | None
    allow_remote: bool
    dummy_weights: bool
    graphs: tuple[bool | None, ...]
    tensor_parallel_size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    load: str
    grid: Grid | None
    minutes: float
    repeats: int
    held_out: int | None
    seconds_per_point: float | None
    meter: str | None
    seed: int

    @property
    def options(self) -> BackendOptions:
        """What the back-end needs to know."""
        return BackendOptions(
            model=self.model_name, gpu=self.device.id, device=self.where, dtype=self.dtype, seed=self.seed,
            base_url=self.base_url, allow_remote=self.allow_remote, dummy_weights=self.dummy_weights,
            cuda_graphs=self.graphs[0], tensor_parallel_size=self.tensor_parallel_size, settings=self.settings,
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
            "settings": dict(self.settings), "load": self.load,
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
    engine, version = engine_version(options["engine"] or ("transformers" if backend == "transformers" else "vllm"))
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
        engine=engine or "vllm",
        version=version or installed(backend),
        base_url=options["base_url"],
        allow_remote=options["allow_remote"],
        dummy_weights=options["dummy_weights"],
        graphs=GRAPHS[options["cuda_graphs"]],
        tensor_parallel_size=options["tensor_parallel_size"],
        settings=settings,
        load=options["load"] or LOADS[backend],
        grid=_grid(options),
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


def installed(backend: str) -> str | None:
    """The version of the engine that is installed here; None for a server, or without the package."""
    from importlib import metadata

    try:
        return metadata.version(backend) if backend in ("vllm", "transformers") else None
    except metadata.PackageNotFoundError:
        return None


def _grid(options: Mapping[str, Any]) -> Grid | None:
    """The user's grid; None: the points are chosen. UserError when only part of one is given."""
    axes = {"--batch": options["batch"], "--input-tok": options["input_tok"], "--output-tok": options["output_tok"]}
    given = [name for name, sizes in axes.items() if sizes]
    if not given:
        return None
    missing = [name for name in axes if name not in given]
    if missing:
        raise UserError(f"{given[0]} is given without {missing[0]}, expected all of {', '.join(axes)} or none")
    if options["held_out"]:
        raise UserError("--held-out is given with a grid of your own, expected one or the other")
    return Grid(*axes.values())


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
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _hash(device: Device) -> str:
    """Sixteen digits of the data sheet's content: an edited sheet is another one."""
    return hashlib.sha256(msgspec.json.encode(device)).hexdigest()[:16]
