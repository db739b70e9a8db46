"""What the laws are held against: a model on a GPU, on as few devices as it needs, as a user would ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from calibration.replay import Replay, replay
from calibration.setup import Setup
from simulator.batch import Batch, PrefillChunk
from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.instance import Instance, InstanceChoice, default_limits, engine_settings
from simulator.keys import KeyRule
from simulator.memory import plan_memory
from simulator.model import Model, load_model
from simulator.parallel import Parallelism
from simulator.precision import choose_precision
from simulator.step import StepModel
from simulator.step_table import StepTable
from simulator.steps import Steps
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.scenario import TrafficScenario, prepare_traffic
from simulator.traffic.served import Served
from simulator.workload.traffic import Traffic

PROMPT_TOK, OUTPUT_TOK = 1024, 129  # of the lone request
LEAST_TOK = 2048  # a deployment whose KV cache holds less is no server


@dataclass(frozen=True)
class Kind:
    """A model in a precision; `label` is its name on screens and in filters."""

    label: str
    model: str
    about: str
    weights: str | None = None
    kv_cache: str = "auto"


KINDS = (
    Kind("qwen2.5-0.5b", "qwen2.5-0.5b", "small, dense, tied embeddings"),
    Kind("phi-2", "phi-2", "dense, attention of as many KV as query heads"),
    Kind("llama-3.1-8b", "llama-3.1-8b", "dense, grouped queries"),
    Kind("llama-3.1-8b:int4", "llama-3.1-8b", "the same in 4-bit weights", "int4"),
    Kind("llama-3.1-8b:fp8", "llama-3.1-8b", "the same in 8 bit, KV cache too", "fp8", "fp8"),
    Kind("gemma-3-4b", "gemma-3-4b", "sliding windows beside full attention"),
    Kind("nemotron-nano-9b-v2", "nemotron-nano-9b-v2", "hybrid of Mamba-2 and attention"),
    Kind("gpt-oss-20b", "gpt-oss-20b", "mixture of experts in mxfp4, sliding windows"),
    Kind("qwen3-30b-a3b", "qwen3-30b-a3b", "mixture of experts, 16 bit"),
    Kind("llama-3.3-70b", "llama-3.3-70b", "large, dense"),
    Kind("deepseek-v3", "deepseek-v3", "latent attention, mixture of experts in fp8"),
)


@dataclass(frozen=True)
class Simulator:
    """The parts of the simulator that the laws call, so that a test can put a broken one in their place."""

    physics: Callable[[StepModel], Any] = lambda model: model
    serve: Callable[[Traffic, Deployment], Served] = serve
    plan_memory: Callable[..., Any] = plan_memory
    replay: Callable[[Setup, Any], Replay] = replay


AS_SHIPPED = Simulator()

device_of = lru_cache(maxsize=256)(load_device)
model_of = lru_cache(maxsize=64)(load_model)


@dataclass(frozen=True)
class Misfit:
    """A combination that no law can be held against, and why."""

    gpu: str
    label: str
    reason: str


@dataclass(frozen=True)
class Subject:
    """One deployment: a GPU, a model, and everything that the simulator makes of them for one server."""

    kind: Kind
    deployment: Deployment
    instance: Instance
    simulator: Simulator = field(default_factory=Simulator)

    @property
    def device(self) -> Device:
        """The data sheet."""
        return self.instance.device

    @property
    def model(self) -> Model:
        """The architecture."""
        return self.instance.model

    @property
    def parallel(self) -> Parallelism:
        """How the model is split."""
        return self.instance.parallel

    @property
    def rules(self) -> tuple[KeyRule, ...]:
        """Which keys a query attends to, by kind of layer."""
        return self.instance.step_model.rules

    @cached_property
    def physics(self) -> Any:
        """What prices steps."""
        return self.simulator.physics(self.instance.step_model)

    @property
    def longest_tok(self) -> int:
        """The most tokens of one sequence."""
        room = self.instance.memory.kv_capacity_tok
        return min(self.instance.settings.max_model_len or room, room)

    def other_physics(self, device: Device | None = None, parallel: Parallelism | None = None) -> Any:
        """Physics of the same model under the same calibration, on another device or split otherwise."""
        own = self.instance.step_model
        model = StepModel(
            own.model, device or own.device, own.precision, own.calibration,
            cuda_graphs=own.graphs,
            parallel=parallel or own.parallel, async_scheduling=own.async_scheduling,
        )  # fmt: skip
        return self.simulator.physics(model)

    def run(self, traffic: Traffic, **changes: Any) -> Served:
        """Traffic served to its end by this deployment, with `changes` of its fields."""
        return self.simulator.serve(traffic, replace(self.deployment, **changes))

    def price_batch(self, batch: Batch) -> float:
        """Seconds of one step."""
        return float(self.physics.price(Steps.from_batches([batch], self.rules)).seconds[0])

    # -- steps in arrays ---------------------------------------------------------------------------------------

    def decode_steps(self, batch: np.ndarray, context_tok: np.ndarray | int) -> Steps:
        """Steps of `batch` (S,) sequences that decode behind `context_tok` (S,) tokens each."""
        sequences, contexts = np.broadcast_arrays(np.asarray(batch, float), np.asarray(context_tok))
        per_sequence = np.array([[rule.keys_at(int(c)) for rule in self.rules] for c in contexts], dtype=float)
        keys = sequences[:, None] * per_sequence.reshape(len(sequences), len(self.rules))
        none, empty = np.zeros(len(sequences)), np.zeros_like(keys)
        return Steps(sequences, keys, none, none, none, empty, empty, sequences)

    def prefill_steps(self, prompts: Sequence[int], prompt_tok: Sequence[int]) -> Steps:
        """Steps that compute `prompts` (S,) whole prompts of `prompt_tok` (S,) tokens each, and nothing else."""
        many, length = np.asarray(prompts, float), np.asarray(prompt_tok, float)
        read = [[rule.keys_read(PrefillChunk(int(tokens))) for rule in self.rules] for tokens in prompt_tok]
        read = many[:, None, None] * np.array(read, dtype=float).reshape(len(many), len(self.rules), 2)
        none = np.zeros(len(many))
        empty = np.zeros((len(many), len(self.rules)))
        return Steps(none, empty, many, many * length, none, read[..., 0], read[..., 1], many)


# -- putting together ------------------------------------------------------------------------------------------


def subject_of(gpu: str, kind: Kind, simulator: Simulator = AS_SHIPPED) -> Subject | Misfit:
    """The server that `kind` gets on `gpu`: on 1, 2, 4, ... devices of one node, as few as hold it."""
    device, reason = device_of(gpu), ""
    for tp in _splits(device):
        asked = _asked(device, kind, tp)
        try:
            _check_room(asked, device)
            return _built(asked, kind, simulator)
        except UserError as error:
            reason = str(error)
    return Misfit(device.id, kind.label, _short(reason, device))


def _splits(device: Device) -> Iterator[int]:
    tp = 1
    while tp <= device.interconnect.gpus_per_node:
        yield tp
        tp *= 2


def _asked(device: Device, kind: Kind, tp: int) -> InstanceChoice:
    return InstanceChoice(
        gpu=device.id, model=kind.model, weights=kind.weights, kv_cache=kind.kv_cache, tensor_parallel_size=tp
    )


def _check_room(asked: InstanceChoice, device: Device) -> None:
    """UserError where the model leaves no room: far quicker than to build everything in vain."""
    model, parallel = model_of(asked.model), Parallelism(asked.tensor_parallel_size)
    parallel.check(model)
    precision, _ = choose_precision(model, device, asked.weights, asked.activations, asked.kv_cache)
    settings = engine_settings(model, asked, default_limits(asked, device, served=True))
    memory = plan_memory(model, device, precision, settings, parallel)
    if memory.kv_capacity_tok < LEAST_TOK:
        raise UserError(f"the KV cache holds {memory.kv_capacity_tok} tokens, less than {LEAST_TOK}")


def _built(asked: InstanceChoice, kind: Kind, simulator: Simulator) -> Subject:
    lone = Traffic(np.array([PROMPT_TOK]), np.array([OUTPUT_TOK]), np.zeros(1))
    fields = {name: getattr(asked, name) for name in asked.__dataclass_fields__}
    setup = prepare_traffic(TrafficScenario(**fields, traffic=lone))
    subject = Subject(kind, setup.deployment, setup.instance, simulator)
    if subject.physics is setup.instance.step_model:
        return subject
    costs = StepTable(subject.physics, subject.longest_tok)
    return Subject(kind, replace(setup.deployment, costs=costs), setup.instance, simulator)


def _short(reason: str, device: Device) -> str:
    """Why not, without what would help."""
    nodes = device.interconnect.gpus_per_node
    within = f"not even on {nodes} devices: " if nodes > 1 else ""
    return within + reason.partition("; ")[0]
