"""One question about traffic, from names to answer: what serves, what arrives, and what users see of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from simulator.device import Device
from simulator.engine.routing import ROUTINGS
from simulator.engine.token_by_token import TokenByToken
from simulator.errors import UserError
from simulator.instance import Instance, InstanceChoice, build_instance, fit_length
from simulator.memory import MemoryPlan
from simulator.overheads import EngineParameters
from simulator.pricing import check_prices, price_of
from simulator.profile import Operation, architecture_features
from simulator.scenario import calibration_facts, installed_version
from simulator.step import StepModel
from simulator.step_table import StepTable
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.result import TrafficResult
from simulator.traffic.served import Served
from simulator.traffic.speculation import SpeculativeCosts, SpeculativeSettings, draft_of, memory_beside
from simulator.workload.traffic import Traffic

__all__ = ["SpeculativeSettings", "TrafficScenario", "prepare_traffic", "simulate_traffic"]

MAX_REPLICAS = 10_000
# From the end of a prefill to the first byte of its KV cache on the wire: hand-over between two engines. Assumed, not
# measured; the output says so.
TRANSFER_START_S = 1e-3


@dataclass(frozen=True, kw_only=True)
class TrafficScenario(InstanceChoice):
    """What a user asks. `engine_settings` may also hold async_scheduling (None: as the engine's version does).

    data_parallel_size: replicas. prefill_replicas > 0: so many replicas prefill, and those of data_parallel_size
    decode. offline: vLLM's `LLM` class, whose limits differ and which no client talks to, instead of its server.
    kv_transfer_gb_per_s: link for KV caches between them, per device of a replica; None: from the data sheet.
    """

    traffic: Traffic
    data_parallel_size: int = 1
    routing: str = "round_robin"
    prefill_replicas: int = 0
    kv_transfer_gb_per_s: float | None = None
    speculative: SpeculativeSettings | None = None
    offline: bool = False
    step_by_step: bool = False
    seed: int = 0
    usd_per_hour: float | None = None
    usd_per_kwh: float | None = None

    def __post_init__(self) -> None:
        if self.routing not in ROUTINGS:
            raise UserError(f"routing '{self.routing}' is not known, expected one of {', '.join(ROUTINGS)}")
        for name, least in (("data_parallel_size", 1), ("prefill_replicas", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be a whole number >= {least}, got {getattr(self, name)}")
        if self.replicas > MAX_REPLICAS:
            raise UserError(f"at most {MAX_REPLICAS:,} replicas can be simulated, got {self.replicas:,}")
        check_prices(usd_per_hour=self.usd_per_hour, usd_per_kwh=self.usd_per_kwh)
        if self.kv_transfer_gb_per_s is not None and not 0.0 < self.kv_transfer_gb_per_s < float("inf"):
            raise UserError(f"kv_transfer_gb_per_s must be a finite number above 0, got {self.kv_transfer_gb_per_s}")
        if self.speculative is not None and self.prefill_replicas:
            raise UserError("speculative decoding together with prefill_replicas cannot be simulated")

    @property
    def replicas(self) -> int:
        """Of all kinds."""
        return self.data_parallel_size + self.prefill_replicas


@dataclass(frozen=True)
class TrafficSetup:
    """A scenario with every name looked up; `deployment` is what `simulator.traffic.cluster.serve` takes."""

    scenario: TrafficScenario
    instance: Instance
    deployment: Deployment
    assumptions: tuple[str, ...]


def simulate_traffic(scenario: TrafficScenario, progress: Callable[[int, int], None] | None = None) -> TrafficResult:
    """Answer `scenario`; `progress(requests ended, all)` is called now and then. UserError on any bad input."""
    setup = prepare_traffic(scenario)
    return _result(setup, serve(scenario.traffic, setup.deployment, progress))


def prepare_traffic(scenario: TrafficScenario) -> TrafficSetup:
    """Look up and check everything that `scenario` names."""
    settings, speculative = dict(scenario.engine_settings), scenario.speculative
    asynchronous = settings.pop("async_scheduling", None)
    # By default vLLM works ahead of the GPU only where the draft is a head of the model.
    off_by_default = speculative is not None and asynchronous is None and speculative.method != "eagle"
    if off_by_default:
        asynchronous = False
    lengths = scenario.traffic.prompt_tok + scenario.traffic.output_tok / 2.0
    held_tok = float(np.average(lengths, weights=scenario.traffic.output_tok))  # by time, about
    instance = build_instance(
        replace(scenario, engine_settings=settings),
        served=not scenario.offline,
        async_scheduling=asynchronous,
        held_tok=held_tok,
    )
    draft = draft_of(instance, scenario, speculative) if speculative else None
    if speculative:
        instance = _beside(instance, draft, scenario)
    engine, physics = instance.calibration.parameters.engine, instance.step_model
    longest = min(instance.settings.max_model_len or instance.memory.kv_capacity_tok, instance.memory.kv_capacity_tok)
    costs = SpeculativeCosts(instance, draft, speculative) if speculative else StepTable(physics, longest)
    transfer_tok_s, transfer_notes = _transfer(instance, scenario)
    deployment = Deployment(
        costs=costs,
        settings=instance.settings,
        kv_blocks=instance.memory.kv_blocks,
        replicas=scenario.data_parallel_size,
        routing=scenario.routing,
        async_scheduling=physics.async_scheduling,
        micro_batches=instance.parallel.pp,
        request_s=0.0 if scenario.offline else engine.request_s,
        prompt_tok_s=0.0 if scenario.offline else engine.prompt_tok_s,
        prefill_replicas=scenario.prefill_replicas,
        transfer_start_s=TRANSFER_START_S if scenario.prefill_replicas else 0.0,
        transfer_tok_s=transfer_tok_s,
        batcher=_token_by_token(scenario) if scenario.step_by_step or speculative else None,
    )
    assumptions = (
        *instance.assumptions,
        *scenario.traffic.assumptions,
        _client_note(scenario, engine),
        *_replica_notes(scenario),
        *transfer_notes,
        *_speculative_notes(speculative),
        *(("async scheduling is off, vLLM's default with such a draft",) if off_by_default else ()),
    )
    return TrafficSetup(scenario, instance, deployment, assumptions)


def _beside(instance: Instance, draft: StepModel | None, scenario: TrafficScenario) -> Instance:
    """The instance with the memory and the lengths that its draft leaves it."""
    verified, budget = 1 + scenario.speculative.num_speculative_tokens, instance.settings.max_num_batched_tokens
    if verified > budget:
        raise UserError(
            f"a step verifies num_speculative_tokens + 1 = {verified:,} tokens of each sequence, more than "
            f"max_num_batched_tokens, {budget:,}"
        )
    memory = memory_beside(instance.memory, draft, scenario.speculative.method)
    settings, notes = fit_length(instance.settings, memory, scenario)
    return replace(instance, memory=memory, settings=settings, assumptions=(*instance.assumptions, *notes))


def _client_note(scenario: TrafficScenario, engine: EngineParameters) -> str:
    if scenario.offline:
        return "offline: nothing lies between the requests and the engine, and limits are those of vLLM's LLM class"
    return (
        f"between client and engine: {1e3 * engine.request_s:.3g} ms per request and "
        f"{1e6 * engine.prompt_tok_s:.3g} us per prompt token (HTTP, tokenising, detokenising), from the calibration"
    )


def _token_by_token(scenario: TrafficScenario) -> Callable[[Deployment], TokenByToken]:
    """Makes schedulers that follow every token; each draws its own acceptances."""
    made = 0

    def make(deployment: Deployment) -> TokenByToken:
        nonlocal made
        made += 1
        rng, speculative = np.random.default_rng([scenario.seed, made]), scenario.speculative
        drafts = (speculative.num_speculative_tokens, speculative.acceptance_rate) if speculative else (0, 0.0)
        return TokenByToken(
            deployment.settings,
            deployment.kv_blocks,
            deployment.costs.rules,
            deployment.async_scheduling,
            *drafts,
            rng,
            deployment.micro_batches,
        )

    return make


def _transfer(instance: Instance, scenario: TrafficScenario) -> tuple[float, tuple[str, ...]]:
    """(seconds per prompt token that a KV cache travels, what that rests on)."""
    if not scenario.prefill_replicas:
        return 0.0, ()
    per_device = instance.memory.kv_byte_per_tok
    if scenario.kv_transfer_gb_per_s is not None:
        bandwidth, origin = 1e9 * scenario.kv_transfer_gb_per_s, "as given"
    else:
        bandwidth, origin = _link(instance.device, instance.parallel.world_size * scenario.replicas)
    note = (
        f"KV caches travel at {bandwidth / 1e9:.4g} GB/s per device ({origin}) after {TRANSFER_START_S * 1e3:g} ms "
        "(assumed), one at a time from each prefilling replica, whose blocks are free once it has computed the prompt; "
        "the decoding one computes the last prompt token again, as in vLLM, and shares no prefixes"
    )
    return per_device / bandwidth, (note,)


def _link(device: Device, devices: int) -> tuple[float, str]:
    """(bytes per second, where from) of the link between two replicas."""
    link = device.interconnect
    if link.scale_up_byte_per_s and devices <= link.gpus_per_node:
        return link.scale_up_byte_per_s, f"{link.kind} of the data sheet"
    if link.pcie_byte_per_s:
        return link.pcie_byte_per_s, "PCIe of the data sheet"
    raise UserError(
        f"the data sheet of {device.name} has no link between devices: say --kv-transfer-gb-per-s, its bandwidth"
    )


def _replica_notes(scenario: TrafficScenario) -> tuple[str, ...]:
    if scenario.replicas == 1:
        return ()
    kinds = (
        f"{scenario.prefill_replicas} replicas prefill, {scenario.data_parallel_size} decode"
        if scenario.prefill_replicas
        else f"{scenario.data_parallel_size} replicas that share nothing"
    )
    return (f"{kinds}; routing {scenario.routing}, which takes no time; power, energy and cost are of all of them",)


def _speculative_notes(speculative: SpeculativeSettings | None) -> tuple[str, ...]:
    if speculative is None:
        return ()
    costs = {
        "ngram": "found in the text at no cost on the GPU",
        "eagle": "by a head of one decoder layer and the LM head, its small input layer left out",
        "draft": f"by {speculative.model} on the same devices",
    }[speculative.method]
    return (
        f"{speculative.num_speculative_tokens} tokens drafted per step {costs}; each is accepted with probability "
        f"{speculative.acceptance_rate:g} if the one before it was: {speculative.tokens_per_step:.2f} tokens per step. "
        "Tokens of one step arrive together, so ITL is the time between steps",
        "no measured run with speculative decoding stands behind these figures",
    )


def _result(setup: TrafficSetup, served: Served) -> TrafficResult:
    scenario, instance = setup.scenario, setup.instance
    device, calibration, parallel = instance.device, instance.calibration, instance.parallel
    outside = calibration.extrapolations(_operation(instance, served))
    devices = parallel.world_size * scenario.replicas
    price, price_notes = price_of(device, scenario.usd_per_hour, scenario.usd_per_kwh, devices)
    return TrafficResult(
        gpu=device.id,
        gpu_name=f"{devices} x {device.name}" if devices > 1 else device.name,
        power_mode=device.power_mode,
        model=instance.model.name,
        parameters=instance.model.parameters(),
        precision=instance.precision.to_dict(),
        traffic=scenario.traffic.title,
        calibration=calibration_facts(calibration, outside),
        interval_log_sd=_spreads(instance, outside, served),
        memory=_memory(instance.memory),
        price=price,
        assumptions=(*setup.assumptions, *price_notes),
        seed=scenario.seed,
        served=served,
        version=installed_version(),
        power={
            "limit_w": device.power.limit_w * devices,
            "idle_w": instance.step_model.idle_power_w * scenario.replicas,
        },
        settings={
            **asdict(instance.settings),
            "enforce_eager": scenario.enforce_eager,
            "async_scheduling": instance.step_model.async_scheduling,
            "offline": scenario.offline,
        },
        parallel=asdict(parallel),
        replicas=scenario.replicas,
        routing=scenario.routing,
        clients=scenario.traffic.clients,
        speculative=asdict(scenario.speculative) if scenario.speculative else None,
    )


def _memory(memory: MemoryPlan) -> dict[str, Any]:
    return {**asdict(memory), "kv_capacity_tok": memory.kv_capacity_tok}


def _operation(instance: Instance, served: Served) -> Operation:
    """What ran, as far as the range of a fit is concerned."""
    requests, steps = served.requests, served.steps
    answered = ~requests.refused
    lengths = (requests.prompt_tok + requests.output_tok)[answered]
    return Operation(
        parameters=instance.model.parameters(),
        weights=instance.precision.weights,
        kv_cache=instance.precision.kv_cache,
        features=architecture_features(instance.model),
        cuda_graphs=instance.step_model.cuda_graphs,
        batch=int((steps.decode_sequences + steps.prefill_sequences).max(initial=0)),
        context_tok=int(lengths.max(initial=0)),
        prompt_tok=int(requests.prompt_tok[answered].max(initial=0)),
        power_mode=instance.device.power_mode,
        tp=instance.parallel.tp,
    )


def _spreads(instance: Instance, outside: tuple[str, ...], served: Served) -> dict[str, float]:
    """Standard deviations of log(measured / predicted) by kind of figure.

    Whole times and energies blend those of prefill and decode by the time that steps with and without prefill take.
    First tokens behind other requests are less certain than those of an idle server.
    """
    calibration, steps = instance.calibration, served.steps
    busy_s = float(steps.duration_s.sum())
    share = float(steps.duration_s[steps.prefill_tok > 0].sum()) / busy_s if busy_s > 0.0 else 0.0
    return {
        "ttft": calibration.spread("ttft_served", outside),
        "tpot": calibration.spread("tpot", outside),
        "time": calibration.blended_spread(share, outside),
        "energy": calibration.blended_energy_spread(share, outside),
        "power": calibration.spread("power", outside),
    }
