"""Replay a measured run in the simulator: the same configuration and load, predicted metrics by the schema's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simpy

from calibration.records import RunRecord
from simulator.device import Device, load_device
from simulator.engine import EngineSettings, Server
from simulator.errors import UserError
from simulator.memory import plan_memory
from simulator.model import Model, load_model
from simulator.precision import Precision, choose_precision
from simulator.profile import Calibration, Operation, architecture_features
from simulator.profile_choice import load_calibration
from simulator.result import CallRecord
from simulator.step import StepModel

MAX_REQUESTS = 4096  # submitted together; beyond it one replay takes minutes


class Unsupported(Exception):
    """A run that this version cannot simulate; the message is the reason, one clause."""


@dataclass(frozen=True)
class Setup:
    """What a run record resolves to, before any physics."""

    record: RunRecord
    device: Device
    model: Model
    precision: Precision
    settings: EngineSettings
    sampler: str
    cuda_graphs: bool
    batch: int
    input_tok: int
    output_tok: int


@lru_cache(maxsize=256)
def _device(gpu: str, power_mode: str | None) -> Device:
    device = load_device(gpu)
    return device.at_mode(power_mode) if power_mode else device


@lru_cache(maxsize=256)
def _model(name: str) -> Model:
    return load_model(name)


def is_gpu(record: RunRecord, gpu: str) -> bool:
    """Whether a record was measured on the GPU with this id; it may name it by an alias."""
    try:
        return _device(record.gpu, None).id == gpu
    except UserError:
        return False


def resolve(record: RunRecord) -> Setup:
    """Device, model, precision and engine settings of a run. Raises Unsupported with the reason."""
    _check_load(record)
    try:
        device, model = _device(record.gpu, record.power_mode), _model(record.model)
        precision, _ = choose_precision(
            model, device, record.weight_dtype, _sixteen_bit_or_own(record), record.kv_dtype
        )
        settings = _settings(record)
    except UserError as error:
        raise Unsupported(str(error)) from None
    if model.diffusion:
        raise Unsupported("a model that writes by diffusion")
    if record.input_tok + record.output_tok > model.max_position_embeddings:
        raise Unsupported(f"more tokens than the model can read ({model.max_position_embeddings})")
    batch, input_tok, output_tok = round(record.concurrency), round(record.input_tok), round(record.output_tok)
    return Setup(
        record=record,
        device=device,
        model=model,
        precision=precision,
        settings=settings,
        sampler="full" if record.flagged("sampling:") else "greedy",
        cuda_graphs=record.cuda_graphs is not False,
        batch=batch,
        input_tok=input_tok,
        output_tok=output_tok,
    )


def _check_load(record: RunRecord) -> None:
    if max(value or 1 for value in (record.n_gpus, record.tp, record.pp, record.ep, record.dp)) > 1:
        raise Unsupported("more than one device")
    single_client = record.load == "closed_loop" and record.concurrency == 1
    if record.load not in ("static_batch", "parallel_sampling") and not single_client:
        raise Unsupported(f"load {record.load}")
    if not record.input_tok or not record.output_tok or not record.concurrency:
        raise Unsupported("concurrency, input_tok or output_tok not stated")
    if record.concurrency > MAX_REQUESTS:
        raise Unsupported(f"more than {MAX_REQUESTS:,} requests at once")
    if record.max_model_len and record.max_model_len < record.input_tok + record.output_tok:
        raise Unsupported("input_tok + output_tok exceed the stated max_model_len")
    if record.length_spread not in (None, "fixed"):
        raise Unsupported(f"length_spread {record.length_spread}")


def _sixteen_bit_or_own(record: RunRecord) -> str | None:
    """Activation type as recorded; block scaling is a property of the weights."""
    return "fp8" if record.activation_dtype == "fp8-block" else record.activation_dtype


def _settings(record: RunRecord) -> EngineSettings:
    """Engine settings of the run; what the source does not state takes vLLM's defaults."""
    # Without chunked prefill a step takes whole prompts, up to max_model_len (vLLM 0.8 `LLM`, V0 engine).
    whole = record.max_model_len or 0
    tokens = record.max_num_batched_tokens or max(8192, whole)
    if record.chunked_prefill is False:
        tokens = max(tokens, whole, round(record.input_tok))
    return EngineSettings(
        max_num_seqs=record.max_num_seqs or min(256, tokens),
        max_num_batched_tokens=tokens,
        max_model_len=record.max_model_len,
        gpu_memory_utilization=record.gpu_memory_utilization or 0.9,
        enable_prefix_caching=record.load == "parallel_sampling" or bool(record.prefix_caching),
    )


def step_model(setup: Setup, calibration: Calibration) -> StepModel:
    """The physics of a run under a calibration."""
    return StepModel(
        setup.model, setup.device, setup.precision, calibration, sampler=setup.sampler, cuda_graphs=setup.cuda_graphs
    )


class StepModels:
    """Step models by configuration, each built once."""

    def __init__(self) -> None:
        self._built: dict[tuple, StepModel] = {}

    def get(self, setup: Setup, calibration: Callable[[], Calibration]) -> StepModel:
        """The physics of a run; `calibration` is only asked when this configuration is new."""
        where = (setup.device.id, setup.device.power_mode, setup.record.engine)
        key = (*where, setup.model, setup.precision, setup.sampler, setup.cuda_graphs)
        if key not in self._built:
            self._built[key] = step_model(setup, calibration())
        return self._built[key]


def replay(setup: Setup, physics: StepModel) -> dict[str, float]:
    """Predicted value of every metric of the schema that can be computed, by column name. Raises Unsupported.

    Besides them `prefill_share`: the share of the run's time spent in steps with prefill.

    All requests are submitted at t = 0; samples of one prompt share it through the prefix cache. Metrics follow
    the schema's definitions; power is energy over the part of the run that the source's figure covers.
    """
    try:
        memory = plan_memory(setup.model, setup.device, setup.precision, setup.settings)
        server = _run(setup, physics, memory.kv_blocks)
    except UserError as error:
        raise Unsupported(str(error)) from None
    calls = list(server.records.values())
    values = _latencies(calls)
    end = max(call.finished_s for call in calls)
    written, read = sum(c.output_tok for c in calls), sum(c.prompt_tok for c in calls)
    # One client sends its requests one after the other: the same run again and again.
    rounds = setup.record.num_requests or 1 if setup.record.load == "closed_loop" else 1
    values["duration_s"] = end * rounds
    values["output_tok_per_s"] = written / end
    values["total_tok_per_s"] = (written + read) / end
    values["batch_mean"] = sum(c.finished_s - c.scheduled_s for c in calls) / end
    values["power_w"], start = _power(setup, server, calls, end)
    firsts = sum(call.first_token_s <= start for call in calls)  # tokens written before a steady window
    values["energy_j_per_output_tok"] = values["power_w"] * (end - start) / (written - firsts)
    values["kv_capacity_tok"] = float(memory.kv_capacity_tok)
    values["prefill_share"] = server.prefill_s / end
    return values


def _run(setup: Setup, physics: StepModel, kv_blocks: int) -> Server:
    env = simpy.Environment()
    server = Server(env, physics, setup.settings, kv_blocks)
    shared = setup.record.load == "parallel_sampling"
    for index in range(setup.batch):
        prompt = ((("prompt", 0 if shared else index), setup.input_tok),)
        server.submit(prompt, setup.output_tok, "request")
    env.run()
    server.close()
    return server


def _latencies(calls: list[CallRecord]) -> dict[str, float]:
    """TTFT, TPOT, ITL and end-to-end statistics over requests, by the schema's definitions."""
    found = {
        "ttft_s": [call.ttft_s for call in calls],
        "tpot_s": [call.tpot_s for call in calls if call.tpot_s is not None],
        "e2e_s": [call.finished_s - call.submitted_s for call in calls],
    }
    # Between first and last token nothing interrupts these loads but other prompts' prefill, so the mean gap
    # between tokens is the requests' TPOT weighted by their gaps; its distribution is not resolved here.
    gaps = sum(call.output_tok - 1 for call in calls)
    out: dict[str, float] = {}
    if gaps:
        out["itl_s_mean"] = sum(call.finished_s - call.first_token_s for call in calls) / gaps
        out["itl_s_median"] = float(np.median(found["tpot_s"]))
    for name, values in found.items():
        if values:
            out[f"{name}_mean"] = float(np.mean(values))
            out[f"{name}_median"] = float(np.median(values))
            out[f"{name}_p99"] = float(np.percentile(values, 99))
    return out


def _power(setup: Setup, server: Server, calls: list[CallRecord], end: float) -> tuple[float, float]:
    """(mean power, start of the window): the whole run, or decoding alone where the source took a steady window."""
    edges, watts = server.power_trace()
    start = 0.0
    if setup.record.flagged("steady_window"):
        start = max(call.first_token_s for call in calls)
    if start >= end:
        start = 0.0
    overlap = np.clip(edges[1:], start, end) - np.clip(edges[:-1], start, end)
    return float((overlap * watts).sum() / (end - start)), start


def operation(setup: Setup) -> Operation:
    """The run, as far as the range of a fit is concerned."""
    return Operation(
        parameters=setup.model.parameters(),
        weights=setup.precision.weights,
        kv_cache=setup.precision.kv_cache,
        features=architecture_features(setup.model),
        cuda_graphs=setup.cuda_graphs,
        batch=setup.batch,
        context_tok=setup.input_tok + setup.output_tok,
        prompt_tok=setup.input_tok,
        power_mode=setup.device.power_mode,
    )


def calibration_for(setup: Setup, path: str | None = None) -> Calibration:
    """The profile that ships for the run's device and engine, or the file given."""
    return load_calibration(setup.device, path, setup.record.engine or "vllm")
