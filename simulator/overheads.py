"""What an engine adds around the kernels, and what a device draws: the parameters that no operator table can tell."""

from __future__ import annotations

import msgspec

from simulator.kernels.spec import ParameterSpec


class EngineParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Overheads of one engine family on one kind of host; meanings and units in ENGINE_SPECS."""

    small_kernel_s: float
    eager_launch_s: float
    step_host_s: float
    sequence_host_s: float
    prefill_host_s: float
    request_s: float
    prompt_tok_s: float
    sampler_start_s: float
    sampler_passes: float
    routing_skew: float


ENGINE_SPECS: dict[str, ParameterSpec] = {
    "small_kernel_s": ParameterSpec(
        "s", "one small kernel (norm, rotary, activation, bookkeeping) inside a CUDA graph, gaps included", 0, 1e-4, 0.3
    ),
    "eager_launch_s": ParameterSpec("s", "host time to launch one kernel outside CUDA graphs", 0.0, 1e-3, 1.0),
    "step_host_s": ParameterSpec(
        "s", "host time per step that the GPU waits for: scheduling, inputs, outputs", 0.0, 5e-2, 0.7
    ),
    "sequence_host_s": ParameterSpec("s", "host time per step and running sequence", 0.0, 1e-2, 0.7),
    "prefill_host_s": ParameterSpec("s", "further host time of a step that computes prompts", 0.0, 2e-1, 1.0),
    "request_s": ParameterSpec(
        "s", "once per request, before its first token: HTTP, hand-over between processes, detokenising", 0.0, 1.0, 1.0
    ),
    "prompt_tok_s": ParameterSpec(
        "s/tok", "per prompt token, before the first token: parsing, tokenising, hashing, copying", 0.0, 1e-4, 1.0
    ),
    "sampler_start_s": ParameterSpec(
        "s", "fixed time of the full sampler (penalties, top-k, top-p) per step", 0.0, 5e-2, 1.0
    ),
    "sampler_passes": ParameterSpec(
        "1", "passes of 4 bytes over batch x vocabulary by the full sampler", 1.0, 500.0, 1.0
    ),
    "routing_skew": ParameterSpec("1", "Zipf exponent of how often experts are chosen; 0 = uniformly", 0.0, 2.0, 0.1),
}


class PowerParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device draws above idle; meanings and units in POWER_SPECS."""

    busy_w: float
    byte_j: float
    flop_j: float


POWER_SPECS: dict[str, ParameterSpec] = {
    "busy_w": ParameterSpec("W", "power above idle of a device that computes, before bytes and FLOPs", 0.0, 500.0, 0.7),
    "byte_j": ParameterSpec("J/byte", "energy per byte moved between memory and chip", 0.0, 1e-9, 0.5),
    "flop_j": ParameterSpec(
        "J/FLOP", "energy per 16-bit FLOP; others in inverse proportion to their peaks", 0.0, 2e-11, 0.5
    ),
}
