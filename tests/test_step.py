"""Laws of one engine step, over devices, models and batches."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.batch import Batch, PrefillChunk
from simulator.device import load_device
from simulator.errors import UserError
from simulator.memory import weights_byte
from simulator.model import load_model
from simulator.precision import choose_precision
from simulator.profile_choice import load_calibration
from simulator.step import CAUSES, StepModel

GPUS = ("orin", "orin-nano", "a100", "h100", "l4", "rtx-4090", "b200", "mi300x", "v100")
MODELS = (
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b",
    "google/gemma-3-4b-it",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
    "deepseek-ai/DeepSeek-V3",
)
gpus, models = st.sampled_from(GPUS), st.sampled_from(MODELS)
sequences, contexts = st.integers(1, 256), st.integers(1, 16_384)


def physics(gpu="orin", model=MODELS[1], weights=None, device=None, **options):
    device, model = device or load_device(gpu), load_model(model)
    precision, _ = choose_precision(model, device, weights)
    return StepModel(model, device, precision, load_calibration(device), **options)


def faster(device, bandwidth=1.0, compute=1.0):
    replace = msgspec.structs.replace
    peaks = {k: v * compute for k, v in device.compute.peak_flop_per_s.items()}
    return replace(
        device,
        memory=replace(device.memory, bandwidth_byte_per_s=device.memory.bandwidth_byte_per_s * bandwidth),
        compute=replace(device.compute, peak_flop_per_s=peaks),
        power=replace(device.power, limit_w=1e6),
    )


@settings(max_examples=60, deadline=None)
@given(gpus, models, sequences, contexts, st.integers(0, 4096))
def test_breakdown_sums_and_energy_is_at_least_idle(gpu, model, n, context, new):
    prefill = (PrefillChunk(new, 128),) if new else ()
    p = physics(gpu, model)
    cost = p.step(Batch(prefill, np.full(n, context)))
    assert set(cost.shares) == set(CAUSES)
    assert sum(cost.shares.values()) == pytest.approx(cost.seconds, rel=1e-9)
    assert min(cost.shares.values()) >= 0.0
    assert cost.joules >= p.idle_power_w * cost.seconds


@settings(max_examples=60, deadline=None)
@given(gpus, models, sequences, contexts, st.floats(1.0, 4.0), st.floats(1.0, 4.0))
def test_a_faster_device_is_never_slower(gpu, model, n, context, bandwidth, compute):
    device = faster(load_device(gpu))
    batch = Batch((PrefillChunk(300),), np.full(n, context))
    slow = physics(model=model, device=device).step(batch).seconds
    assert physics(model=model, device=faster(device, bandwidth, compute)).step(batch).seconds <= slow * (1 + 1e-12)


@settings(max_examples=80, deadline=None)
@given(gpus, models, sequences, contexts)
def test_doubling_the_batch_never_lowers_throughput(gpu, model, n, context):
    p = physics(gpu, model)
    once = p.step(Batch((), np.full(n, context))).seconds
    twice = p.step(Batch((), np.full(2 * n, context))).seconds
    assert 2 * n / twice >= n / once * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(gpus, models, sequences, contexts)
def test_longer_contexts_never_take_less_time_or_energy(gpu, model, n, context):
    p = physics(gpu, model)
    short, long = (p.step(Batch((), np.full(n, c))) for c in (context, context + 512))
    assert short.seconds <= long.seconds and short.joules <= long.joules


@settings(max_examples=60, deadline=None)
@given(gpus, st.sampled_from(MODELS[:2]), sequences, contexts, st.integers(1, 4096))
def test_never_faster_than_bytes_over_bandwidth_and_flops_over_peak(gpu, model, n, context, new):
    p = physics(gpu, model)
    arch, device = p.model, p.device
    weights = weights_byte(arch, p.precision) - arch.embedding_parameters() * p.precision.base_byte
    kv = n * context * arch.kv_elements_per_token * p.precision.kv_byte
    step = p.step(Batch((PrefillChunk(new),), np.full(n, context)))
    assert step.seconds >= (weights + kv) / device.memory.bandwidth_byte_per_s
    linear = arch.parameters() - arch.embedding_parameters() - arch.vocab_size * arch.hidden_size
    flops = 2.0 * linear * (new + n)
    assert step.seconds >= flops / max(device.compute.peak_flop_per_s.values())


@settings(max_examples=40, deadline=None)
@given(gpus, models, st.lists(contexts, min_size=1, max_size=6), st.integers(1, 40))
def test_a_run_of_decode_steps_is_the_steps_one_by_one(gpu, model, context, steps):
    p, start = physics(gpu, model), np.array(context)
    run = p.decode_run(start, steps)
    singles = [p.step(Batch((), start + j)) for j in range(steps)]
    assert run.seconds == pytest.approx([s.seconds for s in singles], rel=1e-12)
    assert run.joules == pytest.approx([s.joules for s in singles], rel=1e-12)
    assert sum(run.shares.values()) == pytest.approx(run.seconds.sum(), rel=1e-9)


def test_fewer_bits_are_never_slower_in_memory_bound_decode():
    batch = Batch((), np.full(1, 1000))
    times = [physics("h100", weights=w).step(batch).seconds for w in ("fp32", "bf16", "fp8", "int4")]
    assert times == sorted(times, reverse=True)


def test_a_power_cap_stretches_time_and_holds_the_limit():
    device = load_device("h100")
    batch = Batch((PrefillChunk(8192),))
    free = physics(device=device).step(batch)
    static_w = physics(device=device).idle_power_w + physics(device=device).p.busy_w
    limit_w = (static_w + free.joules / free.seconds) / 2
    power = msgspec.structs.replace(device.power, limit_w=limit_w)
    capped = physics(device=msgspec.structs.replace(device, power=power)).step(batch)
    assert capped.seconds > free.seconds and capped.shares["power cap"] > 0
    assert capped.joules / capped.seconds == pytest.approx(limit_w)


def test_steps_outside_graphs_are_paced_by_the_slower_of_host_and_gpu():
    """AGX Orin, 1.5 B: any prompt of up to 129 tokens takes the same 48-49 ms (measured 48.1, 48.5, 48.8, 49.2)."""
    p = physics("orin", MODELS[0], sampler="greedy")
    times = [p.step(Batch((PrefillChunk(n),))).seconds for n in (3, 86, 128)]
    assert max(times) / min(times) < 1.05
    graph = p.step(Batch((), np.array([3]))).seconds
    assert graph < 0.7 * times[0]


def test_unknown_sampler_is_refused():
    with pytest.raises(UserError, match="sampler"):
        physics(sampler="beam")


@settings(max_examples=60, deadline=None)
@given(gpus, models, sequences, contexts, st.integers(0, 8192))
def test_power_lies_between_idle_and_limit(gpu, model, n, context, new):
    p = physics(gpu, model)
    cost = p.step(Batch((PrefillChunk(new),) if new else (), np.full(n, context)))
    assert p.idle_power_w <= cost.joules / cost.seconds <= p.device.power.limit_w * (1 + 1e-9)


def test_a_power_cap_slows_arithmetic_not_memory():
    """One sequence is all memory: whatever the limit, its bytes keep their pace."""
    device = load_device("h100-nvl")
    limited = msgspec.structs.replace(device, power=msgspec.structs.replace(device.power, limit_w=200.0))
    batch = Batch((), np.full(1, 1000))
    assert physics(device=limited).step(batch).seconds < 1.1 * physics(device=device).step(batch).seconds
