"""Deployments that laws of physics are tested on: kinds of GPUs and models, and how to put them together."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from simulator.device import Device, load_device
from simulator.model import load_model
from simulator.parallel import SINGLE, Parallelism
from simulator.parameters import with_values
from simulator.precision import choose_precision
from simulator.profile_choice import load_calibration
from simulator.step import StepModel

GPUS = ("orin", "orin-nano", "a100", "h100", "l4", "rtx-4090", "b200", "mi300x", "v100")
SMALL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
DENSE = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
SPARSE = "Qwen/Qwen3-30B-A3B"
LATENT = "deepseek-ai/DeepSeek-V3"
WINDOWED = "google/gemma-3-4b-it"
HYBRID = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
MODELS = (SMALL, DENSE, SPARSE, "openai/gpt-oss-20b", WINDOWED, HYBRID, LATENT)

model_named = lru_cache(load_model)
device_named = lru_cache(load_device)


def physics(
    gpu: str = "orin",
    model: str = DENSE,
    weights: str | None = None,
    activations: str | None = None,
    device: Device | None = None,
    values: dict[str, float] | None = None,
    **options,
) -> StepModel:
    """A step model with the calibration that ships; `device` instead of the sheet, `values` over its parameters."""
    device, loaded = device or device_named(gpu), model_named(model)
    precision, _ = choose_precision(loaded, device, weights, activations, options.pop("kv_cache", None))
    calibration = load_calibration(device)
    if values:
        changed = with_values(calibration.parameters, values)
        calibration = msgspec.structs.replace(calibration, parameters=changed)
    return StepModel(loaded, device, precision, calibration, **options)


def _power(device: Device, limit_w: float):
    """A limit of `limit_w`: a cap where that is below what the board may draw, else the board's own."""
    board_limit_w = max(limit_w, device.power.board_limit_w or device.power.limit_w)
    return msgspec.structs.replace(device.power, limit_w=limit_w, board_limit_w=board_limit_w)


def scaled(device: Device, bandwidth: float = 1.0, compute: float = 1.0, limit_w: float | None = None) -> Device:
    """The device with more bandwidth and higher peaks, and another power limit."""
    replace = msgspec.structs.replace
    peaks = {k: v * compute for k, v in device.compute.peak_flop_per_s.items()}
    return replace(
        device,
        memory=replace(device.memory, bandwidth_byte_per_s=device.memory.bandwidth_byte_per_s * bandwidth),
        compute=replace(device.compute, peak_flop_per_s=peaks),
        power=device.power if limit_w is None else _power(device, limit_w),
    )


def unlimited(gpu: str) -> Device:
    """A GPU that never meets its power limit."""
    return scaled(device_named(gpu), limit_w=1e6)


def splits_of(model: str) -> tuple[Parallelism, ...]:
    """Ways to split a model that vLLM would accept."""
    dense = (SINGLE, Parallelism(tp=2), Parallelism(tp=4), Parallelism(pp=2), Parallelism(tp=2, pp=2))
    sparse = (Parallelism(tp=4, ep=4), Parallelism(tp=2, ep=4, dp=2), Parallelism(ep=8, dp=8))
    found = dense + (sparse if model_named(model).sparse else ())
    return tuple(parallel for parallel in found if _possible(model, parallel))


def _possible(model: str, parallel: Parallelism) -> bool:
    heads = (
        getattr(group.mixer, "q_heads", getattr(group.mixer, "num_heads", 0)) for group in model_named(model).layers
    )
    return not any(count % parallel.tp for count in heads)
