"""One instance of an engine, from names: device, model, precision, calibration, settings, memory, step model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from simulator.cuda_graphs import EAGER, RULES, CudaGraphs
from simulator.device import Device, load_device
from simulator.engine.defaults import frees_behind_windows, vllm_limits
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError, unknown_name
from simulator.memory import MemoryPlan, plan_memory, weights_byte
from simulator.model import Model, default_ladder, load_model
from simulator.operators import STREAM_PREFIX_TOK, merging_parameters
from simulator.parallel import SINGLE, Parallelism
from simulator.precision import Precision, choose_precision
from simulator.profile import Calibration, architecture_features
from simulator.profile_choice import load_calibration
from simulator.profile_parts import engine_families, version_number
from simulator.step import StepModel

# A default model's weights may take this much of the memory: the rest is for KV cache, activations and, where the
# CPU lives in the same memory, for the operating system and the robot's other programs.
WEIGHTS_SHARE, WEIGHTS_SHARE_UNIFIED = 0.70, 0.42
DIFFUSION_MODEL = "GSAI-ML/LLaDA-8B-Instruct"
KV_ROOM_TOK = 32_768  # eight thoughts of 4,096 tokens side by side


@dataclass(frozen=True, kw_only=True)
class InstanceChoice:
    """What a user asks of an engine. Names and paths as typed; None: the default, which the assumptions then state."""

    gpu: str
    model: str | None = None
    weights: str | None = None
    activations: str | None = None
    kv_cache: str = "auto"
    power_mode: str | None = None
    calibration: str | None = None
    engine_settings: Mapping[str, Any] = field(default_factory=dict)  # fields of EngineSettings
    enforce_eager: bool = False
    max_cudagraph_capture_size: int | None = None  # None: as the engine's version chooses
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    engine: str | None = None  # "vllm", "sglang:0.5.5", ...: whose overheads; None: the newest vLLM


@dataclass(frozen=True)
class Instance:
    """An engine with every name looked up and everything checked that can be checked before it runs."""

    device: Device
    model: Model
    precision: Precision
    parallel: Parallelism
    calibration: Calibration
    settings: EngineSettings
    memory: MemoryPlan
    step_model: StepModel
    assumptions: tuple[str, ...]


def build_instance(
    asked: InstanceChoice,
    *,
    served: bool | None = None,
    async_scheduling: bool | None = None,
    held_tok: float | None = None,
    diffusion: bool = False,
    streams: int = 1,
) -> Instance:
    """Look up and check everything that `asked` names. UserError on any bad input.

    served: whose limits hold where nobody sets them, see `default_limits`. async_scheduling None: as the engine's
    version does. held_tok: tokens that a running sequence holds in the mean, where that is known: engines that free
    blocks behind sliding windows then have room for more. diffusion: what flies are full passes of a diffusion model.
    streams: parallel streams of the model (ParScale), each with a KV cache of its own.
    """
    device = load_device(asked.gpu, asked.power_mode)
    engine, version = engine_version(asked.engine)
    calibration = load_calibration(device, asked.calibration, engine, version)
    parallel = parallelism(asked)
    if asked.model is not None:
        model, why = load_model(asked.model), ()
    elif diffusion:
        model, why = load_model(DIFFUSION_MODEL), (f"no --model given: {DIFFUSION_MODEL}, a diffusion model",)
    else:
        model, why = default_model(device, asked, parallel, streams)
    _check_kind(model, diffusion)
    if asked.enable_expert_parallel and not model.sparse:
        raise UserError(f"{model.name} has no experts, so enable_expert_parallel cannot be set")
    parallel.check(model)
    precision, precision_notes = _precision(model, device, asked)
    limits = default_limits(asked, device, served)
    settings = engine_settings(model, asked, limits)
    held_tok = held_tok if frees_behind_windows(engine, version) else None
    memory = plan_memory(model, device, precision, settings, parallel, held_tok)
    settings, length_notes = fit_length(settings, memory, asked)
    step_model = StepModel(
        model,
        device,
        precision,
        calibration,
        cuda_graphs=_graphs(calibration, settings, asked),
        parallel=parallel,
        async_scheduling=calibration.async_scheduling if async_scheduling is None else async_scheduling,
        micro_batch_tok=settings.max_num_batched_tokens if served is not None else None,
        streams=streams,
    )
    memory = _streamed(memory, model, precision, streams)
    assumptions = (
        *why,
        *model.notes,
        *precision_notes,
        *_device_notes(device),
        *_parallel_notes(device, parallel),
        f"weights in {precision.weights}, activations in {precision.activations}, KV cache in {precision.kv_cache}",
        *_engine_notes(settings, asked, step_model, limits[0]),
        *length_notes,
        *_window_notes(model, held_tok),
    )
    return Instance(device, model, precision, parallel, calibration, settings, memory, step_model, assumptions)


def _check_kind(model: Model, diffusion: bool) -> None:
    """UserError when a model writes in another way than what flies."""
    if model.diffusion and not diffusion:
        raise UserError(
            f"{model.name} writes by diffusion, in repeated passes over whole texts; expected a strategy made for that "
            "(simulate --list strategies says which need a diffusion model), or a model that writes token by token"
        )
    if diffusion and not model.diffusion:
        raise UserError(
            f"{model.name} writes token by token, but the strategy is one of diffusion models; expected one like "
            f"{DIFFUSION_MODEL}"
        )


def _streamed(memory: MemoryPlan, model: Model, precision: Precision, streams: int) -> MemoryPlan:
    """The same memory with a KV cache for each parallel stream, their learned prefixes, and the merging network."""
    if streams == 1:
        return memory
    merging = merging_parameters(model.hidden_size, streams) * precision.base_weight_byte
    per_tok = memory.kv_byte_per_tok * streams
    left = memory.kv_blocks * memory.block_size * memory.kv_byte_per_tok - merging - STREAM_PREFIX_TOK * per_tok
    blocks = int(left // (per_tok * memory.block_size))
    if blocks < 1:
        raise UserError(f"{model.name} in {streams} parallel streams leaves no room for a KV cache")
    weights = memory.weights_byte + merging
    return replace(memory, weights_byte=weights, kv_byte_per_tok=per_tok, kv_blocks=blocks)


def default_limits(asked: InstanceChoice, device: Device | None, served: bool | None) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) where nobody sets them.

    served None: those of `EngineSettings`; True, False: of vLLM's server, of its `LLM` class, on this GPU and in the
    engine's version.
    """
    if served is None:
        return EngineSettings.max_num_seqs, EngineSettings.max_num_batched_tokens
    engine, version = engine_version(asked.engine)
    v1 = engine not in (None, "vllm") or version is None or version_number(version) >= (0, 8)
    return vllm_limits(device, server=served, v1=v1)


def engine_version(text: str | None) -> tuple[str | None, str | None]:
    """("vllm", "0.8.6") of "vllm:0.8.6"; parts that are not there are None. UserError on anything else."""
    if text is None:
        return None, None
    engine, colon, version = text.partition(":")
    if not engine or (colon and not version):
        raise UserError(f"engine: found '{text}', expected NAME[:VERSION], like vllm or vllm:0.8.6")
    known = {family.engine for family in engine_families()}
    if engine not in known:
        raise unknown_name("engine", engine, sorted(known), f"expected one of {', '.join(sorted(known))}")
    if version and not version_number(version):
        raise UserError(f"engine: version '{version}' does not start with a number, expected one like 0.8.6")
    return engine, version or None


def parallelism(asked: InstanceChoice) -> Parallelism:
    """How the model is split; with expert parallelism each device of the tensor-parallel group holds whole experts."""
    ep = asked.tensor_parallel_size if asked.enable_expert_parallel else 1
    return Parallelism(asked.tensor_parallel_size, asked.pipeline_parallel_size, ep)


def _graphs(calibration: Calibration, settings: EngineSettings, asked: InstanceChoice) -> CudaGraphs:
    """The CUDA graphs that the engine records under these settings."""
    if asked.enforce_eager or not calibration.cuda_graphs:
        return EAGER
    largest = asked.max_cudagraph_capture_size
    return RULES[calibration.graph_rule].graphs(settings.max_num_seqs, settings.max_num_batched_tokens, largest)


def _parallel_notes(device: Device, parallel: Parallelism) -> tuple[str, ...]:
    if parallel.world_size == 1:
        return ()
    ep = f", expert parallel over {parallel.ep}" if parallel.ep > 1 else ""
    notes = [
        f"{parallel.world_size} devices: tensor parallel over {parallel.tp}, {parallel.pp} pipeline stage(s){ep}; "
        "memory figures are per device; power, energy and cost are of all"
    ]
    if parallel.world_size > device.interconnect.gpus_per_node:
        notes.append(
            f"the data sheet has {device.interconnect.gpus_per_node} {device.name} in a node; messages between nodes "
            "are taken to be as fast as inside one"
        )
    return tuple(notes)


def _precision(model: Model, device: Device, asked: InstanceChoice) -> tuple[Precision, tuple[str, ...]]:
    return choose_precision(model, device, asked.weights, asked.activations, asked.kv_cache)


def default_model(
    device: Device, asked: InstanceChoice, parallel: Parallelism = SINGLE, streams: int = 1
) -> tuple[Model, tuple[str, ...]]:
    """The largest model of the ladder that leaves room on the device, and the sentence that says so.

    streams: in so many of which every text is kept.
    """
    share = WEIGHTS_SHARE_UNIFIED if device.memory.unified else WEIGHTS_SHARE
    ladder = default_ladder()
    for name in reversed(ladder):
        model = load_model(name)
        precision, _ = _precision(model, device, asked)
        needed = weights_byte(model, precision, parallel)
        room = _kv_capacity_tok(model, device, precision, asked, parallel) // streams
        if needed <= share * device.memory.capacity_byte and room >= KV_ROOM_TOK:
            break
    return model, (
        f"no --model given: {model.name}, the largest of {len(ladder)} models whose weights ({needed / 1e9:.1f} GB in "
        f"{precision.weights}) take at most {100 * share:.0f} % of the memory and leave a KV cache of {KV_ROOM_TOK:,} "
        f"tokens (if none does: the smallest)",
    )


def _kv_capacity_tok(
    model: Model, device: Device, precision: Precision, asked: InstanceChoice, parallel: Parallelism
) -> int:
    """Tokens of KV cache beside the model; 0 if it does not fit."""
    try:
        return plan_memory(model, device, precision, engine_settings(model, asked), parallel).kv_capacity_tok
    except UserError:
        return 0


def engine_settings(model: Model, asked: InstanceChoice, limits: tuple[int, int] | None = None) -> EngineSettings:
    """The engine's settings; max_model_len is the model's own length unless asked for less.

    limits: (max_num_seqs, max_num_batched_tokens) where nobody sets them; None: those of `EngineSettings`.
    """
    settings = dict(asked.engine_settings)
    longest = model.max_position_embeddings
    length = settings.get("max_model_len")
    if length is not None and length > longest:
        raise UserError(
            f"max_model_len {length} is longer than {model.name} can read: its max_position_embeddings is {longest}"
        )
    settings["max_model_len"] = longest if length is None else length
    if model.state_elements:  # vLLM does not share recurrent state between prompts by default
        settings.setdefault("enable_prefix_caching", False)
    sequences, tokens = limits or default_limits(asked, None, None)
    if settings.get("enable_chunked_prefill") is False:  # a step then takes any prompt whole
        tokens = max(tokens, settings["max_model_len"])
    # vLLM wants a token per running sequence; a smaller step, asked for alone, means fewer sequences.
    tokens = settings.setdefault("max_num_batched_tokens", max(tokens, settings.get("max_num_seqs", 0)))
    settings.setdefault("max_num_seqs", min(sequences, tokens))
    return EngineSettings(**settings)


def fit_length(
    settings: EngineSettings, memory: MemoryPlan, asked: InstanceChoice
) -> tuple[EngineSettings, tuple[str, ...]]:
    """max_model_len no longer than the KV cache, as vLLM demands: lowered if the model's own, refused if asked for."""
    capacity = memory.kv_capacity_tok
    if settings.max_model_len is None or settings.max_model_len <= capacity:
        return settings, ()
    if asked.engine_settings.get("max_model_len") is not None:
        raise UserError(
            f"max_model_len {settings.max_model_len} is more than the {capacity} tokens that the KV cache holds"
        )
    note = f"max_model_len lowered from {settings.max_model_len} to the {capacity} tokens that the KV cache holds"
    return replace(settings, max_model_len=capacity), (note,)


def _window_notes(model: Model, held_tok: float | None) -> tuple[str, ...]:
    if "windowed attention" not in architecture_features(model):
        return ()
    if held_tok is not None:
        return (
            "KV cache: blocks behind sliding windows are freed; what those layers keep is taken in the mean, for "
            f"sequences that hold {held_tok:,.0f} tokens",
        )
    return ("KV cache: layers with windowed attention are counted as if they kept every token, which overstates it",)


def _device_notes(device: Device) -> tuple[str, ...]:
    if device.power_mode is None:
        return ()
    compute = f"{device.compute.sm_count} SMs at {device.compute.clock_hz / 1e6:.0f} MHz"
    return (f"power mode {device.power_mode}: {compute}, {device.power.limit_w:.0f} W",)


def _engine_notes(settings: EngineSettings, asked: InstanceChoice, physics: StepModel, limit: int) -> tuple[str, ...]:
    """The engine as it flies, in vLLM's words; `limit`: sequences per step where nobody says anything."""
    notes = [
        f"engine like vLLM V1: max_num_seqs {settings.max_num_seqs}, max_num_batched_tokens "
        f"{settings.max_num_batched_tokens}, max_model_len {settings.max_model_len}, gpu_memory_utilization "
        f"{settings.gpu_memory_utilization:g}, block_size {settings.block_size}, prefix caching "
        f"{'on' if settings.enable_prefix_caching else 'off'}, CUDA graphs {'on' if physics.cuda_graphs else 'off'}"
        f"{', async scheduling' if physics.async_scheduling else ''}",
        "tokens are sampled with temperature, top-k and top-p; the server is warm",
    ]
    if "max_num_seqs" not in asked.engine_settings and settings.max_num_seqs < limit:
        notes.append(f"max_num_seqs lowered to max_num_batched_tokens, {settings.max_num_seqs}")
    return tuple(notes)
