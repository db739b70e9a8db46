"""From a run record to what runs: device, model, precision, parallelism, engine settings, memory. No physics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from calibration.records import RunRecord
from calibration.sources import source_of, with_scripts
from calibration.stand_ins import (
    device_as_stated,
    experts_as_stated,
    lengths_as_stated,
    precision_as_stated,
)
from simulator.cuda_graphs import EAGER, RULES, CudaGraphs
from simulator.device import Device
from simulator.engine import EngineSettings
from simulator.engine.defaults import frees_behind_windows, vllm_limits
from simulator.errors import UserError
from simulator.memory import MemoryPlan, plan_memory
from simulator.model import Model, load_model
from simulator.model.layers import MoeFfn
from simulator.parallel import Parallelism
from simulator.precision import Precision
from simulator.profile import Calibration, Operation, architecture_features
from simulator.profile_choice import load_calibration
from simulator.profile_parts import EngineFamily, engine_family, is_async, rule_of, version_number
from simulator.step import StepModel


class Unsupported(Exception):
    """A run that this version cannot simulate; the message is the reason, one clause."""


@dataclass(frozen=True)
class Setup:
    """What a run record resolves to, before any physics. `kv_blocks`: of one replica."""

    record: RunRecord
    device: Device
    model: Model
    precision: Precision
    parallel: Parallelism
    settings: EngineSettings
    kv_blocks: int
    memory: MemoryPlan | None  # None: by our estimate it does not fit, though it ran
    family: EngineFamily
    version: str | None
    sampler: str
    graphs: CudaGraphs
    server: bool
    batch: int  # requests at a time, over all replicas
    input_tok: int
    output_tok: int
    stand_ins: tuple[str, ...] = ()  # what is simulated in place of what the record states

    @property
    def cuda_graphs(self) -> bool:
        """Whether any step replays a graph."""
        return self.graphs.used

    @property
    def async_scheduling(self) -> bool:
        """Whether the host works ahead of the GPU: as the run states, else as the engine's version does by default."""
        return self.record.flagged("async_scheduling") or is_async(self.family, self.version)

    @property
    def deployment(self) -> tuple:
        """What the cost of a step depends on besides the calibration; equal deployments share a step model."""
        device = self.device
        return (
            device.id, device.power_mode, device.power.limit_w, self.family.id, self.version, self.model,
            self.precision, self.parallel, self.sampler, self.graphs, self.async_scheduling,
        )  # fmt: skip


@lru_cache(maxsize=256)
def _model(name: str) -> Model:
    return load_model(name)


@lru_cache(maxsize=256)
def _family(engine: str | None, version: str | None) -> EngineFamily:
    return engine_family(engine, version)[0]


def is_gpu(record: RunRecord, gpu: str) -> bool:
    """Whether a record was measured on the GPU with this id; it may name it by an alias."""
    try:
        return device_as_stated(record.gpu, None)[0].id == gpu
    except UserError:
        return False


def resolve(record: RunRecord) -> Setup:
    """Everything that a run record names, looked up. Raises Unsupported with the reason."""
    _check(record)
    version = record.engine_version or source_of(record.source).engine_version
    family = _family(record.engine, version)
    try:
        (device, mode), model = device_as_stated(record.gpu, record.power_mode), _model(record.model)
        record, model, lengths = lengths_as_stated(record, model)
        record, experts = experts_as_stated(record, model)
        record = with_scripts(record, device.architecture, version)
        precision, types = precision_as_stated(record, model, device)
        precision = replace(precision, marlin=record.flagged("experts:marlin"))
        parallel = parallelism(record, model, precision)
        parallel.check(model)
        server = source_of(record.source).client == "server"
        settings = _settings(record, device, model, family, version, server)
    except UserError as error:
        raise Unsupported(str(error)) from None
    if model.diffusion:
        raise Unsupported("a model that writes by diffusion")
    hybrid = frees_behind_windows(family.engine, version)
    memory, kv_blocks = _memory(record, model, device, precision, settings, parallel, hybrid)
    return Setup(
        record=record,
        device=device,
        model=model,
        precision=precision,
        parallel=parallel,
        settings=settings,
        kv_blocks=kv_blocks,
        memory=memory,
        family=family,
        version=version,
        sampler="full" if record.flagged("sampling:") else "greedy",
        graphs=_graphs(record, family, version, settings),
        server=server,
        batch=round(record.concurrency or record.num_requests or 1),
        input_tok=round(record.input_tok),
        output_tok=round(record.output_tok),
        stand_ins=tuple(said for said in (mode, *lengths, experts, types) if said),
    )


def _check(record: RunRecord) -> None:
    if not record.input_tok or not record.output_tok:
        raise Unsupported("input_tok or output_tok not stated")
    if record.load == "open_loop" and not record.request_rate_rps:
        raise Unsupported("open_loop without request_rate_rps")
    if record.load == "burst" and not (record.num_requests or record.concurrency):
        raise Unsupported("burst without num_requests")
    if record.load not in ("open_loop", "burst") and not record.concurrency:
        raise Unsupported("concurrency not stated")


FP8_BLOCK = 128  # weights that share a scale


def parallelism(record: RunRecord, model: Model, precision: Precision) -> Parallelism:
    """How a run splits its model; devices that no label explains are taken as tensor parallel.

    Experts with block scales cannot be cut inside a block (vLLM refuses): where the labelled split would, the run must
    have placed whole experts, which result tables tend to hide behind the tensor-parallel label.
    """
    tp, pp, ep, dp = (value or 1 for value in (record.tp, record.pp, record.ep, record.dp))
    if record.n_gpus and tp * pp * dp == 1:
        tp = record.n_gpus
    widths = {g.ffn.expert_intermediate_size for g in model.layers if isinstance(g.ffn, MoeFfn)}
    if ep == 1 and precision.weights == "fp8-block" and any(width % (tp * FP8_BLOCK) for width in widths):
        ep = tp
    return Parallelism(tp, pp, ep if tp * dp % ep == 0 else 1, dp)


def _settings(
    record: RunRecord, device: Device, model: Model, family: EngineFamily, version: str | None, server: bool
) -> EngineSettings:
    """Engine settings of the run; what the source does not state takes vLLM's defaults."""
    v1 = family.engine != "vllm" or version is None or version_number(version) >= (0, 8)
    v1 = v1 and source_of(record.source).v1
    sequences, tokens = vllm_limits(device, server, v1)
    # Without chunked prefill a step takes whole prompts, up to max_model_len (V0).
    whole = record.max_model_len or 0
    tokens = record.max_num_batched_tokens or max(tokens, 0 if v1 else whole)
    if record.chunked_prefill is False or not v1:
        tokens = max(tokens, whole, round(record.input_tok))
    if record.load in ("static_batch", "parallel_sampling"):  # one batch is what such runs mean
        sequences = max(sequences, round(record.concurrency))
    sequences = record.max_num_seqs or sequences
    return EngineSettings(
        max_num_seqs=sequences,
        max_num_batched_tokens=max(tokens, sequences),
        max_model_len=record.max_model_len,
        gpu_memory_utilization=record.gpu_memory_utilization or 0.9,
        enable_prefix_caching=_prefix_caching(record, model, v1),
    )


def _graphs(record: RunRecord, family: EngineFamily, version: str | None, settings: EngineSettings) -> CudaGraphs:
    """The graphs that a run replays: as its flags say, else as the engine's version does by default."""
    if not (family.cuda_graphs if record.cuda_graphs is None else record.cuda_graphs):
        return EAGER
    rule = RULES[graph_rule_of(record, family, version)]
    largest, mode = record.flag_value("cudagraph_max:"), record.flag_value("cudagraph_mode:")
    if mode:
        rule = replace(rule, decode=mode, mixed=mode)
    return rule.graphs(settings.max_num_seqs, settings.max_num_batched_tokens, int(largest) if largest else None)


def _prefix_caching(record: RunRecord, model: Model, v1: bool) -> bool:
    """As the run states; else V1's default, which is on. Recurrent state is not shared between prompts by default."""
    if model.state_elements:
        return False
    if record.load == "parallel_sampling":
        return True
    return v1 if record.prefix_caching is None else record.prefix_caching


def graph_rule_of(record: RunRecord, family: EngineFamily, version: str | None) -> str:
    """The name of the rule by which the engine of a run records graphs where its flags say nothing else."""
    return rule_of(family, version, source_of(record.source).v1)


def _memory(record, model, device, precision, settings, parallel, hybrid) -> tuple[MemoryPlan | None, int]:
    """(plan, KV blocks of a replica): as the run states them, else planned; the run is proof that it fits.

    A running sequence holds its prompt and half of its output, on average.
    """
    longest = round(record.input_tok + record.output_tok)
    held_tok = record.input_tok + record.output_tok / 2.0 if hybrid else None
    try:
        plan = plan_memory(model, device, precision, settings, parallel, held_tok)
        blocks = plan.kv_blocks
    except UserError:
        plan, blocks = None, 0
    if record.kv_capacity_tok:
        blocks = int(record.kv_capacity_tok // settings.block_size)
    # One request at least was served, whatever the estimate says.
    return plan, max(blocks, -(-longest // settings.block_size) + 1)


# The KV cache decides how many sequences run where those that may run would fill more than this share of it.
KV_BINDS_FROM = 0.9


def kv_may_bind(setup: Setup) -> bool:
    """Whether the KV cache, as planned, rather than a limit on sequences sets how many run at a time."""
    held_tok = setup.input_tok + setup.output_tok / 2.0
    may_run = min(setup.batch / setup.parallel.dp, setup.settings.max_num_seqs)
    return may_run * held_tok > KV_BINDS_FROM * setup.kv_blocks * setup.settings.block_size


def step_model(setup: Setup, calibration: Calibration) -> StepModel:
    """The physics of a run under a calibration."""
    return StepModel(
        setup.model,
        setup.device,
        setup.precision,
        calibration,
        sampler=setup.sampler,
        cuda_graphs=setup.graphs,
        parallel=setup.parallel,
        async_scheduling=setup.async_scheduling,
    )


def operation(setup: Setup) -> Operation:
    """The run, as far as the range of a fit is concerned."""
    concurrent = min(setup.batch, setup.settings.max_num_seqs * setup.parallel.dp)
    return Operation(
        parameters=setup.model.parameters(),
        weights=setup.precision.weights,
        kv_cache=setup.precision.kv_cache,
        features=architecture_features(setup.model),
        cuda_graphs=setup.cuda_graphs,
        batch=concurrent,
        context_tok=setup.input_tok + setup.output_tok,
        prompt_tok=setup.input_tok,
        power_mode=setup.device.power_mode,
        tp=setup.parallel.tp,
    )


def calibration_for(setup: Setup, path: str | None = None) -> Calibration:
    """The profile that ships for the run's device and engine, or the file given."""
    return load_calibration(setup.device, path, setup.record.engine, setup.version)
