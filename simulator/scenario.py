"""One question from names to answer: device, model, precision, calibration and strategy put together and flown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from simulator.cuda_graphs import EAGER, RULES, CudaGraphs
from simulator.device import Device, load_device
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.flight import collect_assumptions, fly
from simulator.memory import MemoryPlan, plan_memory, weights_byte
from simulator.model import Model, default_ladder, load_model
from simulator.parallel import SINGLE, Parallelism
from simulator.precision import Precision, choose_precision
from simulator.pricing import price_of
from simulator.profile import Calibration, Operation, architecture_features
from simulator.profile_choice import load_calibration
from simulator.profile_parts import version_number
from simulator.result import Flight, SimulationResult
from simulator.step import StepModel
from simulator.strategies import Strategy, get_strategy

# A default model's weights may take this much of the memory: the rest is for KV cache, activations and, where the
# CPU lives in the same memory, for the operating system and the robot's other programs.
WEIGHTS_SHARE, WEIGHTS_SHARE_UNIFIED = 0.70, 0.42
MAX_REPETITIONS = 100_000
KV_ROOM_TOK = 32_768  # eight thoughts of 4,096 tokens side by side


@dataclass(frozen=True)
class Scenario:
    """What a user asks. Names and paths as typed; None means the default that the assumptions then state."""

    gpu: str
    strategy: str
    model: str | None = None
    weights: str | None = None
    activations: str | None = None
    kv_cache: str = "auto"
    power_mode: str | None = None
    calibration: str | None = None
    engine_settings: Mapping[str, Any] = field(default_factory=dict)  # fields of EngineSettings
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    engine: str | None = None  # "vllm", "sglang:0.5.5", ...: whose overheads; None: the newest vLLM
    step_by_step: bool = False
    repetitions: int = 20
    seed: int = 0
    usd_per_hour: float | None = None
    usd_per_kwh: float | None = None
    strategy_parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.repetitions <= MAX_REPETITIONS:
            raise UserError(
                f"repetitions must be a whole number >= 1, at most {MAX_REPETITIONS:,}, got {self.repetitions}"
            )
        if self.seed < 0:
            raise UserError(f"seed must be a whole number >= 0, got {self.seed}")
        for name in ("usd_per_hour", "usd_per_kwh"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0.0):
                raise UserError(f"{name} must be a finite number >= 0, got {value}")


@dataclass(frozen=True)
class Setup:
    """A scenario with every name looked up and everything checked that can be checked before flying."""

    scenario: Scenario
    device: Device
    model: Model
    precision: Precision
    parallel: Parallelism
    calibration: Calibration
    settings: EngineSettings
    memory: MemoryPlan
    step_model: StepModel
    strategy: Strategy
    assumptions: tuple[str, ...]


def simulate_scenario(scenario: Scenario, progress: Callable[[int, int], None] | None = None) -> SimulationResult:
    """Answer `scenario`; `progress(done, total)` is called after every repetition. UserError on any bad input."""
    setup = prepare(scenario)
    flights = fly(
        setup.step_model,
        setup.memory,
        setup.settings,
        setup.strategy,
        scenario.strategy_parameters,
        scenario.repetitions,
        scenario.seed,
        step_by_step=scenario.step_by_step,
        progress=progress,
    )
    return _result(setup, flights)


def prepare(scenario: Scenario) -> Setup:
    """Look up and check everything that `scenario` names."""
    strategy = get_strategy(scenario.strategy)
    strategy.resolve(scenario.strategy_parameters)  # bad parameters are told before files are read
    device = load_device(scenario.gpu, scenario.power_mode)
    calibration = load_calibration(device, scenario.calibration, *engine_version(scenario.engine))
    parallel = parallelism(scenario)
    if scenario.model is None:
        model, why = default_model(device, scenario, parallel)
    else:
        model, why = load_model(scenario.model), ()
    if model.diffusion:
        raise UserError(
            f"{model.name} writes by diffusion, in repeated passes over whole sequences; strategy '{strategy.name}' is "
            "for models that write token by token"
        )
    if scenario.enable_expert_parallel and not model.sparse:
        raise UserError(f"{model.name} has no experts, so enable_expert_parallel cannot be set")
    parallel.check(model)
    precision, precision_notes = _precision(model, device, scenario)
    settings = engine_settings(model, scenario)
    memory = plan_memory(model, device, precision, settings, parallel)
    settings, length_notes = _fit_length(settings, memory, scenario)
    step_model = StepModel(
        model,
        device,
        precision,
        calibration,
        cuda_graphs=_graphs(calibration, settings, scenario),
        parallel=parallel,
        async_scheduling=calibration.async_scheduling,
    )
    assumptions = (
        *why,
        *model.notes,
        *precision_notes,
        *_device_notes(device),
        *_parallel_notes(device, parallel),
        f"weights in {precision.weights}, activations in {precision.activations}, KV cache in {precision.kv_cache}",
        *_engine_notes(model, settings, scenario, step_model.cuda_graphs),
        *length_notes,
        *_window_notes(model),
        *(f"{strategy.name}: {line}" for line in collect_assumptions(strategy, scenario.strategy_parameters)),
    )
    return Setup(
        scenario, device, model, precision, parallel, calibration, settings, memory, step_model, strategy, assumptions
    )


def engine_version(text: str | None) -> tuple[str | None, str | None]:
    """("vllm", "0.8.6") of "vllm:0.8.6"; parts that are not there are None. UserError on anything else."""
    if text is None:
        return None, None
    engine, colon, version = text.partition(":")
    if not engine or (colon and not version):
        raise UserError(f"engine: found '{text}', expected NAME[:VERSION], like vllm or vllm:0.8.6")
    if version and not version_number(version):
        raise UserError(f"engine: version '{version}' does not start with a number, expected one like 0.8.6")
    return engine, version or None


def parallelism(scenario: Scenario) -> Parallelism:
    """How the model is split; with expert parallelism each device of the tensor-parallel group holds whole experts."""
    ep = scenario.tensor_parallel_size if scenario.enable_expert_parallel else 1
    return Parallelism(scenario.tensor_parallel_size, scenario.pipeline_parallel_size, ep)


def _graphs(calibration: Calibration, settings: EngineSettings, scenario: Scenario) -> CudaGraphs:
    """The CUDA graphs that the engine records under these settings."""
    if scenario.enforce_eager or not calibration.cuda_graphs:
        return EAGER
    return RULES[calibration.graph_rule].graphs(settings.max_num_seqs, settings.max_num_batched_tokens)


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


def _precision(model: Model, device: Device, scenario: Scenario) -> tuple[Precision, tuple[str, ...]]:
    return choose_precision(model, device, scenario.weights, scenario.activations, scenario.kv_cache)


def default_model(device: Device, scenario: Scenario, parallel: Parallelism = SINGLE) -> tuple[Model, tuple[str, ...]]:
    """The largest model of the ladder that leaves room on the device, and the sentence that says so."""
    share = WEIGHTS_SHARE_UNIFIED if device.memory.unified else WEIGHTS_SHARE
    ladder = default_ladder()
    for name in reversed(ladder):
        model = load_model(name)
        precision, _ = _precision(model, device, scenario)
        needed = weights_byte(model, precision, parallel)
        room = _kv_capacity_tok(model, device, precision, scenario, parallel)
        if needed <= share * device.memory.capacity_byte and room >= KV_ROOM_TOK:
            break
    return model, (
        f"no --model given: {model.name}, the largest of {len(ladder)} models whose weights ({needed / 1e9:.1f} GB in "
        f"{precision.weights}) take at most {100 * share:.0f} % of the memory and leave a KV cache of {KV_ROOM_TOK:,} "
        f"tokens (if none does: the smallest)",
    )


def _kv_capacity_tok(
    model: Model, device: Device, precision: Precision, scenario: Scenario, parallel: Parallelism
) -> int:
    """Tokens of KV cache beside the model; 0 if it does not fit."""
    try:
        return plan_memory(model, device, precision, engine_settings(model, scenario), parallel).kv_capacity_tok
    except UserError:
        return 0


def engine_settings(model: Model, scenario: Scenario) -> EngineSettings:
    """The engine's settings; max_model_len is the model's own length unless asked for less."""
    settings = dict(scenario.engine_settings)
    longest = model.max_position_embeddings
    asked = settings.get("max_model_len")
    if asked is not None and asked > longest:
        raise UserError(
            f"max_model_len {asked} is longer than {model.name} can read: its max_position_embeddings is {longest}"
        )
    settings["max_model_len"] = longest if asked is None else asked
    if model.state_elements:  # vLLM does not share recurrent state between prompts by default
        settings.setdefault("enable_prefix_caching", False)
    # vLLM wants a token per running sequence; a smaller step, asked for alone, means fewer sequences.
    budget = settings.get("max_num_batched_tokens")
    if budget is not None and "max_num_seqs" not in settings:
        settings["max_num_seqs"] = min(EngineSettings.max_num_seqs, budget)
    return EngineSettings(**settings)


def _fit_length(
    settings: EngineSettings, memory: MemoryPlan, scenario: Scenario
) -> tuple[EngineSettings, tuple[str, ...]]:
    """max_model_len no longer than the KV cache, as vLLM demands: lowered if the model's own, refused if asked for."""
    capacity = memory.kv_capacity_tok
    if settings.max_model_len is None or settings.max_model_len <= capacity:
        return settings, ()
    if scenario.engine_settings.get("max_model_len") is not None:
        raise UserError(
            f"max_model_len {settings.max_model_len} is more than the {capacity} tokens that the KV cache holds"
        )
    note = f"max_model_len lowered from {settings.max_model_len} to the {capacity} tokens that the KV cache holds"
    return replace(settings, max_model_len=capacity), (note,)


def _window_notes(model: Model) -> tuple[str, ...]:
    if "windowed attention" not in architecture_features(model):
        return ()
    return ("KV cache: layers with windowed attention are counted as if they kept every token, which overstates it",)


def _device_notes(device: Device) -> tuple[str, ...]:
    if device.power_mode is None:
        return ()
    compute = f"{device.compute.sm_count} SMs at {device.compute.clock_hz / 1e6:.0f} MHz"
    return (f"power mode {device.power_mode}: {compute}, {device.power.limit_w:.0f} W",)


def _engine_notes(model: Model, settings: EngineSettings, scenario: Scenario, graphs: bool) -> tuple[str, ...]:
    """The engine as it flies, in vLLM's words."""
    notes = [
        f"engine like vLLM V1: max_num_seqs {settings.max_num_seqs}, max_num_batched_tokens "
        f"{settings.max_num_batched_tokens}, max_model_len {settings.max_model_len}, gpu_memory_utilization "
        f"{settings.gpu_memory_utilization:g}, block_size {settings.block_size}, prefix caching "
        f"{'on' if settings.enable_prefix_caching else 'off'}, CUDA graphs {'on' if graphs else 'off'}",
        "tokens are sampled with temperature, top-k and top-p; the server is warm, and nobody else uses it",
    ]
    asked = scenario.engine_settings
    if "max_num_seqs" not in asked and settings.max_num_seqs != EngineSettings.max_num_seqs:
        notes.append(f"max_num_seqs lowered to max_num_batched_tokens, {settings.max_num_seqs}")
    return tuple(notes)


def _result(setup: Setup, flights: tuple[Flight, ...]) -> SimulationResult:
    scenario, device, calibration = setup.scenario, setup.device, setup.calibration
    outside = extrapolations(setup, flights)
    price, price_notes = price_of(device, scenario.usd_per_hour, scenario.usd_per_kwh, setup.parallel.world_size)
    return SimulationResult(
        gpu=device.id,
        gpu_name=f"{setup.parallel.world_size} x {device.name}" if setup.parallel.world_size > 1 else device.name,
        power_mode=device.power_mode,
        model=setup.model.name,
        parameters=setup.model.parameters(),
        precision=setup.precision.to_dict(),
        strategy=setup.strategy.name,
        strategy_parameters=setup.strategy.plain(scenario.strategy_parameters),
        calibration=_calibration(calibration, outside),
        interval_log_sd=_spreads(calibration, outside, flights),
        memory={**asdict(setup.memory), "kv_capacity_tok": setup.memory.kv_capacity_tok},
        price=price,
        assumptions=(*setup.assumptions, *price_notes),
        seed=scenario.seed,
        flights=flights,
        version=installed_version(),
        power={
            "limit_w": device.power.limit_w * setup.parallel.world_size,
            "idle_w": setup.step_model.idle_power_w,
        },
        parallel=asdict(setup.parallel),
        settings={**asdict(setup.settings), "enforce_eager": scenario.enforce_eager},
    )


def extrapolations(setup: Setup, flights: tuple[Flight, ...]) -> tuple[str, ...]:
    """How the flights left the range that the calibration was fitted on, as sentences."""
    calls = [call for flight in flights for call in flight.calls]
    return setup.calibration.extrapolations(
        Operation(
            parameters=setup.model.parameters(),
            weights=setup.precision.weights,
            kv_cache=setup.precision.kv_cache,
            features=architecture_features(setup.model),
            cuda_graphs=setup.step_model.cuda_graphs,
            batch=max((flight.peak_running for flight in flights), default=0),
            context_tok=max((call.prompt_tok + call.output_tok for call in calls), default=0),
            prompt_tok=max((call.prompt_tok for call in calls), default=0),
            power_mode=setup.device.power_mode,
            tp=setup.parallel.tp,
        )
    )


def _spreads(calibration: Calibration, outside: tuple[str, ...], flights: tuple[Flight, ...]) -> dict[str, float]:
    """Standard deviations of log(measured / predicted) by kind of figure.

    The wall time's is blended of those of prefill and decode, by their shares of the calls that held up the end.
    """
    prefill_s = sum(call.first_token_s - call.scheduled_s for flight in flights for call in flight.critical_calls())
    wall_s = sum(flight.wall_s for flight in flights)
    share = min(1.0, prefill_s / wall_s) if wall_s > 0.0 else 0.0
    spreads = {kind: calibration.spread(kind, outside) for kind in ("ttft", "tpot", "power")}
    energy = calibration.blended_energy_spread(share, outside)
    return {"time": calibration.blended_spread(share, outside), "energy": energy, **spreads}


def calibration_status(calibration: Calibration) -> str:
    """ "fitted" on runs of this GPU, "borrowed" from a sibling's, or "defaults" without measured runs."""
    if calibration.fitted_on is None:
        return "defaults"
    return "borrowed" if calibration.transferred else "fitted"


def _calibration(calibration: Calibration, outside: tuple[str, ...]) -> dict[str, Any]:
    """What a result says about the calibration it rests on."""
    return {
        "id": calibration.id,
        "title": calibration.title,
        "engine": calibration.engine,
        "status": calibration_status(calibration),
        "source": calibration.source,
        "data_hash": calibration.data_hash,
        "power_scope": calibration.power_scope,
        "notes": list(calibration.notes),
        "extrapolated": list(outside),
        "variance_factor": round((calibration.spread("time", outside) / calibration.spread("time")) ** 2, 9),
    }


def installed_version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tokenflight")
    except PackageNotFoundError:  # run from an unpacked folder
        return "not installed"
