"""The deployments that a plan may choose from: hardware, engine settings, numbers of replicas, and their prices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from simulator.device import load_device
from simulator.errors import UserError
from simulator.instance import InstanceChoice
from simulator.pricing import check_prices, price_of

MAX_CANDIDATES = 2_000_000
MAX_REPLICAS = 1000


class Hardware(NamedTuple):
    """What one replica runs on, and in which number formats. None: the default of model and device."""

    gpu: str  # id of its data sheet, or a file
    tp: int = 1
    pp: int = 1
    expert_parallel: bool = False
    weights: str | None = None
    kv_cache: str = "auto"
    power_mode: str | None = None

    @property
    def devices(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.pp

    def phrase(self) -> str:
        """'4 x h100-sxm, fp8 weights' of one replica."""
        parts = [f"{self.devices} x {self.gpu}" if self.devices > 1 else self.gpu]
        parts += [self.power_mode] if self.power_mode else []
        split = [f"tp {self.tp}"] * (self.tp > 1) + [f"pp {self.pp}"] * (self.pp > 1) + ["ep"] * self.expert_parallel
        parts += [" ".join(split)] if split else []
        parts += [f"{self.weights} weights"] if self.weights else []
        parts += [f"{self.kv_cache} KV"] if self.kv_cache != "auto" else []
        return ", ".join(parts)


class Engine(NamedTuple):
    """Settings of the engine. None: vLLM's default on that GPU. prefill_replicas: so many replicas only prefill."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    prefill_replicas: int = 0

    def settings(self) -> dict[str, int]:
        """Those that are set, as fields of `EngineSettings`."""
        found = {"max_num_seqs": self.max_num_seqs, "max_num_batched_tokens": self.max_num_batched_tokens}
        return {name: value for name, value in found.items() if value is not None}

    def phrase(self) -> str:
        """'max_num_seqs 256, 2 prefill replicas'."""
        parts = [f"{name} {value}" for name, value in self.settings().items()]
        parts += [f"{self.prefill_replicas} of the replicas only prefill"] if self.prefill_replicas else []
        return ", ".join(parts) or "default settings"


class Variant(NamedTuple):
    """A deployment but for its number of replicas (of those that decode, where others prefill)."""

    hardware: Hardware
    engine: Engine

    def replicas(self, number: int) -> int:
        """Of all kinds."""
        return number + self.engine.prefill_replicas

    def devices(self, number: int) -> int:
        """GPUs of all of them."""
        return self.replicas(number) * self.hardware.devices


@dataclass(frozen=True, kw_only=True)
class Space:
    """Everything that is tried, for one model. Sequences are all combined.

    replicas: allowed numbers, ascending. fixed: further fields of `InstanceChoice` that all share, `engine_settings`
    among them. usd_per_hour: price of one GPU by its id, instead of the data sheet's. max_devices: GPUs in all.
    """

    model: str
    gpus: tuple[str, ...]
    tp: tuple[int, ...] = (1, 2, 4, 8)
    pp: tuple[int, ...] = (1,)
    expert_parallel: tuple[bool, ...] = (False,)
    weights: tuple[str | None, ...] = (None,)
    kv_cache: tuple[str, ...] = ("auto",)
    power_modes: tuple[str | None, ...] = (None,)
    max_num_seqs: tuple[int | None, ...] = (None,)
    max_num_batched_tokens: tuple[int | None, ...] = (None,)
    prefill_replicas: tuple[int, ...] = (0,)
    replicas: tuple[int, ...] = tuple(range(1, 17))
    max_devices: int | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    kv_transfer_gb_per_s: float | None = None
    usd_per_hour: Mapping[str, float] = field(default_factory=dict)
    usd_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name in _AXES:
            if not getattr(self, name):
                raise UserError(f"candidates: {name} is empty, expected at least one value")
        for name in ("tp", "pp", "replicas"):
            if min(getattr(self, name)) < 1:
                raise UserError(f"candidates: {name} must be whole numbers >= 1, got {min(getattr(self, name))}")
        if list(self.replicas) != sorted(set(self.replicas)) or self.replicas[-1] > MAX_REPLICAS:
            raise UserError(f"candidates: replicas must be ascending whole numbers, at most {MAX_REPLICAS:,}")
        if len(self) > MAX_CANDIDATES:
            raise UserError(f"candidates: {len(self):,} are too many, at most {MAX_CANDIDATES:,} can be searched")
        check_prices(usd_per_kwh=self.usd_per_kwh, **self.usd_per_hour)

    def __len__(self) -> int:
        """Candidate deployments, numbers of replicas included."""
        return math.prod(len(getattr(self, name)) for name in _AXES)

    @cached_property
    def engines(self) -> tuple[Engine, ...]:
        """All settings of the engine."""
        axes = (self.max_num_seqs, self.max_num_batched_tokens, self.prefill_replicas)
        return tuple(Engine(*values) for values in itertools.product(*axes))

    @cached_property
    def hardware(self) -> tuple[Hardware, ...]:
        """All that a replica may run on."""
        axes = (self.gpus, self.tp, self.pp, self.expert_parallel, self.weights, self.kv_cache, self.power_modes)
        return tuple(Hardware(*values) for values in itertools.product(*axes))

    def choice(self, hardware: Hardware, engine: Engine) -> dict[str, Any]:
        """Fields of `InstanceChoice` of a replica."""
        fixed = dict(self.fixed)
        settings = {**fixed.pop("engine_settings", {}), **engine.settings()}
        return {
            **fixed,
            "gpu": hardware.gpu,
            "model": self.model,
            "weights": hardware.weights,
            "kv_cache": hardware.kv_cache,
            "power_mode": hardware.power_mode,
            "tensor_parallel_size": hardware.tp,
            "pipeline_parallel_size": hardware.pp,
            "enable_expert_parallel": hardware.expert_parallel,
            "engine_settings": settings,
        }

    def instance_choice(self, hardware: Hardware, engine: Engine) -> InstanceChoice:
        """The same as an `InstanceChoice`."""
        return InstanceChoice(**self.choice(hardware, engine))

    def allowed(self, variant: Variant) -> tuple[int, ...]:
        """Numbers of replicas of a variant within `max_devices`, ascending."""
        most = math.inf if self.max_devices is None else self.max_devices
        return tuple(n for n in self.replicas if variant.devices(n) <= most)

    @cached_property
    def prices(self) -> dict[str, tuple[float, float, str]]:
        """GPU -> (USD per hour of one, USD per kWh on top, what that rests on). UserError where there is no price."""
        found = {}
        for gpu in dict.fromkeys(self.gpus):
            device = load_device(gpu)
            given = self.usd_per_hour.get(gpu, self.usd_per_hour.get(device.id))
            price, _ = price_of(device, given, self.usd_per_kwh)
            if not math.isfinite(price["usd_per_hour"]):
                raise UserError(f"the data sheet of {gpu} has no price: give --price {gpu}=USD_PER_HOUR")
            memory = "" if given is not None else "; prices of data sheets are from memory"
            found[gpu] = price["usd_per_hour"], price["usd_per_kwh"], price["basis"] + memory
        return found

    def usd_per_h(self, variant: Variant, replicas: int, power_w: float = 0.0) -> float:
        """Of a whole deployment that draws `power_w`; electricity counts where it is paid besides."""
        hourly, per_kwh, _ = self.prices[variant.hardware.gpu]
        return hourly * variant.devices(replicas) + per_kwh * power_w / 1000.0


_AXES = (
    "gpus", "tp", "pp", "expert_parallel", "weights", "kv_cache", "power_modes", "max_num_seqs",
    "max_num_batched_tokens", "prefill_replicas", "replicas",
)  # fmt: skip
