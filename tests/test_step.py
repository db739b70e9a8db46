"""Laws of one engine step, over devices, models, precisions, splits and batches."""

import numpy as np
import pytest
from deployments import (
    DENSE,
    GPUS,
    LATENT,
    MODELS,
    SMALL,
    SPARSE,
    device_named,
    model_named,
    physics,
    scaled,
    splits_of,
    unlimited,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.batch import Batch, PrefillChunk
from simulator.cuda_graphs import ANY_SIZE, EAGER
from simulator.errors import UserError
from simulator.memory import weights_byte
from simulator.model.layers import MoeFfn
from simulator.parallel import Parallelism
from simulator.parameters import KERNEL_GROUPS
from simulator.step import CAUSES, SAMPLERS

gpus, models = st.sampled_from(GPUS), st.sampled_from(MODELS)
sequences, contexts = st.integers(1, 256), st.integers(1, 16_384)
# Storage and arithmetic; on a GPU without the units a default falls back to weight-only.
PRECISIONS = ((None, None), ("bf16", None), ("fp8", None), ("fp8", "bf16"), ("int8", None), ("int4", None),
              ("mxfp4", None), ("nvfp4", None), ("bf16", "fp32"))  # fmt: skip


@st.composite
def deployments(draw, gpu=gpus, **fixed):
    """Any GPU, model, precision and split."""
    model = draw(models)
    weights, activations = draw(st.sampled_from(PRECISIONS))
    options = {"parallel": draw(st.sampled_from(splits_of(model))), "sampler": draw(st.sampled_from(SAMPLERS)), **fixed}
    return physics(draw(gpu), model, weights, activations, **options)


def batch_of(n, context, new=0, cached=128):
    return Batch((PrefillChunk(new, cached),) if new else (), np.full(n, context))


# -- sums and bounds ------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(deployments(), sequences, contexts, st.integers(0, 4096), st.booleans())
def test_breakdown_sums_and_power_lies_between_idle_and_limit(p, n, context, new, cuda_graphs):
    p.graphs = ANY_SIZE if cuda_graphs else EAGER
    cost = p.step(batch_of(n, context, new))
    assert set(cost.shares) == set(CAUSES)
    assert sum(cost.shares.values()) == pytest.approx(cost.seconds, rel=1e-9)
    assert min(cost.shares.values()) >= 0.0
    limit_w = p.device.power.limit_w * p.parallel.world_size
    assert min(p.idle_power_w, limit_w) * (1 - 1e-9) <= cost.joules / cost.seconds <= limit_w * (1 + 1e-9)


def floor_byte(p, n, context):
    """Weights and keys that one device must read at least in a decode step; of experts those of a single token."""
    model, parallel, precision = p.model, p.parallel, p.precision
    byte = weights_byte(model, precision, parallel) * parallel.pp
    table = model.embedding_parameters() - model.vocab_size * model.hidden_size * model.tie_word_embeddings
    byte -= table * precision.base_weight_byte / parallel.tp
    for group in model.layers:
        if isinstance(group.ffn, MoeFfn):
            unread = group.ffn.experts - group.ffn.experts_per_token
            expert = group.ffn.expert_parameters(model.hidden_size) * precision.weight_byte
            byte -= group.count * unread * expert / (parallel.ep * parallel.expert_tp)
            if parallel.ep > 1:  # the busiest device need not hold all that is chosen
                byte -= group.count * group.ffn.experts_per_token * expert / (parallel.ep * parallel.expert_tp)
    for work in p.plan.attention:
        keys = p.rules[work.rule].decode_keys_now(np.full(n, context))
        byte += work.count * keys * work.kv_elements_per_tok * precision.kv_byte
    return byte


# Some libraries multiply few rows on the vector units and are slower just before they leave them: a documented jump.
NO_JUMP = {f"{group}.skinny_rows": 0.0 for group in KERNEL_GROUPS if group.startswith("gemm")}


def without_pipeline(p):
    return p.parallel.pp == 1


@settings(max_examples=150, deadline=None)
@given(deployments().filter(without_pipeline), sequences, contexts)
def test_never_faster_than_bytes_over_bandwidth(p, n, context):
    step = p.step(batch_of(n, context))
    assert step.seconds >= floor_byte(p, n, context) / p.device.memory.bandwidth_byte_per_s
    assert step.shares["memory"] + step.shares["compute"] + step.shares["attention"] > 0.0


@settings(max_examples=150, deadline=None)
@given(deployments().filter(without_pipeline), sequences, contexts, st.integers(1, 8192))
def test_never_faster_than_flops_over_peak(p, n, context, new):
    model, parallel, peaks = p.model, p.parallel, p.device.compute.peak_flop_per_s
    step = p.step(batch_of(n, context, new))
    used = model.active_parameters(embedding=False) - model.vocab_size * model.hidden_size
    share = parallel.tp if parallel.ep == 1 or parallel.dp == 1 else max(parallel.tp, parallel.ep)
    small = 1 - 0.002  # norms and biases are no products
    assert step.seconds >= small * 2.0 * used * (new + n) / share / max(peaks.values())
    if p.precision.layer_cast:
        assert step.seconds >= small * 2.0 * used * (new + n) / share / peaks["fp32"]


# -- monotone -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(gpus, models, sequences, contexts, st.floats(1.0, 4.0), st.floats(1.0, 4.0), st.data())
def test_a_faster_device_is_never_slower(gpu, model, n, context, bandwidth, compute, data):
    parallel = data.draw(st.sampled_from(splits_of(model)))
    batch = Batch((PrefillChunk(300),), np.full(n, context))
    # fp8, int8 and the like may not exist here: the same precision on both, the model's own
    slow, fast = (
        physics(model=model, device=device, parallel=parallel).step(batch).seconds
        for device in (unlimited(gpu), scaled(unlimited(gpu), bandwidth, compute))
    )
    assert fast <= slow * (1 + 1e-12)


@settings(max_examples=80, deadline=None)
@given(gpus, models, sequences, contexts)
def test_doubling_the_batch_never_lowers_throughput(gpu, model, n, context):
    """Without a power limit. With one it may, by up to 10 %: what is held back is the time of arithmetic only, and of
    the overlap of arithmetic and memory more is laid to arithmetic as the batch grows."""
    p = physics(model=model, device=unlimited(gpu))
    once, twice = (p.step(batch_of(size, context)).seconds for size in (n, 2 * n))
    assert 2 * n / twice >= n / once * (1 - 1e-9)


@settings(max_examples=80, deadline=None)
@given(gpus, models, sequences, contexts)
def test_longer_contexts_never_take_less_time_or_energy(gpu, model, n, context):
    p = physics(gpu, model)
    short, long = (p.step(batch_of(n, c)) for c in (context, context + 512))
    assert short.seconds <= long.seconds * (1 + 1e-12) and short.joules <= long.joules * (1 + 1e-12)


@settings(max_examples=80, deadline=None)
@given(gpus, models, sequences, contexts, st.integers(1, 64))
def test_more_sequences_never_take_less_time(gpu, model, n, context, more):
    p = physics(gpu, model, values=NO_JUMP)
    assert p.step(batch_of(n, context)).seconds <= p.step(batch_of(n + more, context)).seconds * (1 + 1e-9)


@settings(max_examples=80, deadline=None)
@given(gpus, models, st.integers(2, 4096), st.integers(1, 512), st.integers(0, 4096))
def test_longer_prompts_never_take_less_time(gpu, model, new, more, cached):
    p = physics(gpu, model, values=NO_JUMP)
    short, long = (p.step(Batch((PrefillChunk(size, cached),))).seconds for size in (new, new + more))
    assert short <= long * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(gpus, models, st.integers(2, 2048), st.integers(0, 4096), st.integers(1, 4096))
def test_more_cached_tokens_never_take_less_time(gpu, model, new, cached, more):
    p = physics(gpu, model, values=NO_JUMP)
    short, long = (p.step(Batch((PrefillChunk(new, before),))).seconds for before in (cached, cached + more))
    assert short <= long * (1 + 1e-9)


def test_making_keys_of_a_compressed_cache_again_costs_one_product_however_short_the_chunk():
    """DeepSeek-V3: 2 x rank x heads x (nope + v) FLOPs per cached token and layer, not padded to the chunk's tiles."""
    p = physics("h100", LATENT)
    flop = sum(work.count * work.expand_flop_per_cached_tok for work in p.plan.attention) * 3000
    assert flop == 61 * 2 * 512 * 128 * 256 * 3000
    for new in (2, 100):
        none, some = (p.step(Batch((PrefillChunk(new, cached),))).shares["attention"] for cached in (0, 3000))
        assert flop / p.device.compute.peak_flop_per_s["bf16"] < some - none
    pairs_s = some - none
    assert pairs_s < 10 * flop / p.device.compute.peak_flop_per_s["bf16"]


# -- precisions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["h100", "a100", "l4", "b200"])
def test_fewer_bits_are_never_slower_in_memory_bound_decode(gpu):
    large = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
    times = [physics(gpu, large, w, "bf16").step(batch_of(1, 1000)).seconds for w in ("bf16", "fp8", "int4")]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("model", [DENSE, SPARSE, "openai/gpt-oss-20b"])
@pytest.mark.parametrize("gpu", ["h100", "a100", "orin", "b200"])
def test_layer_cast_is_slower_than_sixteen_bits(gpu, model):
    plain, cast = (physics(gpu, model, "bf16", activations) for activations in (None, "fp32"))
    assert {g.weight_byte for g in cast.plan.gemms} == {10.0}  # read 2, write 4, read 4
    for batch in (batch_of(1, 500), batch_of(64, 500), Batch((PrefillChunk(2048),))):
        assert cast.step(batch).seconds > plain.step(batch).seconds
    assert cast.precision.weight_byte == 2.0  # it is stored as before


@pytest.mark.parametrize("weights", ["fp8", "int8"])
@pytest.mark.parametrize("gpu", ["h100", "l4", "rtx-4090"])
def test_eight_bit_arithmetic_pays_in_prefill_and_eight_bit_weights_in_decode(gpu, weights):
    wide, weight_only, native = (physics(gpu, DENSE, w, a) for w, a in
                                 (("bf16", None), (weights, "bf16"), (weights, None)))  # fmt: skip
    assert (weight_only.precision.activations, native.precision.activations) == ("bf16", weights)
    prompt = Batch((PrefillChunk(4096),))
    assert native.step(prompt).seconds < weight_only.step(prompt).seconds
    one = batch_of(1, 500)
    assert max(weight_only.step(one).seconds, native.step(one).seconds) < wide.step(one).seconds


def test_weight_only_formats_gain_nothing_in_prefill():
    prompt = Batch((PrefillChunk(8192),))
    wide, int4 = (
        physics(model=DENSE, device=unlimited("h100"), weights=w).step(prompt).seconds for w in ("bf16", "int4")
    )
    assert int4 >= wide * (1 - 0.02)


@pytest.mark.parametrize("model", [DENSE, SPARSE])
def test_four_bit_arithmetic_pays_in_prefill_where_there_are_units(model):
    prompt = Batch((PrefillChunk(8192),))
    native, weight_only = (physics("b200", model, "nvfp4", activations) for activations in (None, "bf16"))
    assert native.precision.activations == "nvfp4"
    assert native.step(prompt).seconds < weight_only.step(prompt).seconds


def test_a_narrow_cache_helps_long_contexts():
    long = batch_of(64, 16_000)
    wide, narrow = (physics("h100", DENSE, kv_cache=kv).step(long).shares["attention"] for kv in ("auto", "fp8"))
    assert narrow < wide


# -- power ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [Parallelism(), Parallelism(tp=2), Parallelism(dp=2)])
def test_a_power_cap_stretches_time_and_holds_the_limit(parallel):
    batch, devices = Batch((PrefillChunk(8192),)), parallel.world_size
    p = physics(device=unlimited("h100"), parallel=parallel)
    free = p.step(batch)
    free_w = free.joules / free.seconds / devices
    static_w = p.idle_power_w / devices + p.p.power.busy_w

    limit_w = static_w + 0.8 * (free_w - static_w)
    capped = physics(device=scaled(p.device, limit_w=limit_w), parallel=parallel,
                     values={"power.busy_w": p.p.power.busy_w}).step(batch)  # fmt: skip
    assert capped.seconds > free.seconds and capped.shares["power cap"] > 0
    assert capped.joules / capped.seconds == pytest.approx(limit_w * devices)
    for cause in set(CAUSES) - {"power cap"}:
        assert capped.shares[cause] == free.shares[cause]


def test_a_power_cap_slows_arithmetic_not_memory():
    """One sequence is all memory: whatever the limit, its bytes keep their pace."""
    device = device_named("h100-nvl")
    limited = scaled(device, limit_w=200.0)
    batch = batch_of(1, 1000)
    assert physics(device=limited).step(batch).seconds < 1.1 * physics(device=device).step(batch).seconds


@settings(max_examples=60, deadline=None)
@given(deployments(), sequences, contexts, st.integers(0, 4096), st.floats(0.3, 1.0))
def test_a_lower_limit_is_never_faster_and_never_draws_more(p, n, context, new, share):
    static_w = p.idle_power_w / p.parallel.world_size + p.p.power.busy_w
    # A limit below what it draws without any byte or FLOP cannot be held by slowing arithmetic.
    lower = scaled(p.device, limit_w=max(share * p.device.power.limit_w, 1.01 * static_w))
    assume(lower.power.limit_w < p.device.power.limit_w)
    values = {"power.busy_w": p.p.power.busy_w}
    same = {"parallel": p.parallel, "sampler": p.sampler, "values": values}
    q = physics(
        device=lower, model=p.model.name, weights=p.precision.weights, activations=p.precision.activations, **same
    )
    a, b = p.step(batch_of(n, context, new)), q.step(batch_of(n, context, new))
    assert b.seconds >= a.seconds * (1 - 1e-12)
    assert b.joules / b.seconds <= a.joules / a.seconds * (1 + 1e-9)
    assert b.shares["power cap"] <= b.shares["compute"] + b.shares["attention"] + 1e-12


# -- the host -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(deployments(), sequences, contexts, st.integers(0, 4096))
def test_working_ahead_is_never_slower(p, n, context, new):
    batch = batch_of(n, context, new)
    waiting = p.step(batch)
    p.async_scheduling = True
    ahead = p.step(batch)
    assert ahead.seconds <= waiting.seconds * (1 + 1e-12)
    assert ahead.seconds >= waiting.seconds - waiting.shares["host"] - waiting.shares["power cap"] - 1e-12
    for cause in set(CAUSES) - {"host", "power cap"}:
        assert ahead.shares[cause] == waiting.shares[cause]


def test_the_slower_of_host_and_gpu_sets_the_pace_when_working_ahead():
    batch = batch_of(8, 500)
    values = {"engine.step_host_s": 0.04, "engine.sequence_host_s": 0.0}
    host_bound = physics("h100", values=values, async_scheduling=True).step(batch)
    assert host_bound.seconds - host_bound.shares["power cap"] == pytest.approx(0.04)
    gpu_bound = physics("h100", values={**values, "engine.step_host_s": 1e-5}, async_scheduling=True).step(batch)
    assert gpu_bound.shares["host"] == 0.0


def test_steps_outside_graphs_are_paced_by_the_slower_of_host_and_gpu():
    """With a slow host every short prompt takes the same time, as on AGX Orin; a replayed graph does not wait."""
    p = physics("orin", SMALL, sampler="greedy", values={"engine.eager_launch_s": 5e-4})
    short = [p.step(Batch((PrefillChunk(n),))) for n in (3, 86, 128)]
    assert max(s.seconds for s in short) == pytest.approx(min(s.seconds for s in short), rel=1e-9)
    assert short[0].seconds >= p.plan.launches * 5e-4
    long = p.step(Batch((PrefillChunk(16_384),)))
    assert long.shares["launch"] < short[0].shares["launch"]
    assert p.step(batch_of(1, 3)).seconds < 0.7 * short[0].seconds


def test_without_graphs_every_step_is_launched():
    values = {"engine.eager_launch_s": 5e-4}
    eager, graph = (physics("h100", values=values, cuda_graphs=graphs) for graphs in (False, True))
    batch = batch_of(4, 100)
    assert eager.step(batch).seconds > eager.plan.launches * 5e-4 > graph.step(batch).seconds
    prompt = Batch((PrefillChunk(100),))
    assert eager.step(prompt).seconds == graph.step(prompt).seconds


def test_the_full_sampler_takes_longer_than_the_greedy_one():
    for gpu in GPUS:
        full, greedy = (physics(gpu, SMALL, sampler=name).step(batch_of(64, 100)).shares for name in ("full", "greedy"))
        assert full["sampler"] > greedy["sampler"] > 0.0


def test_unknown_sampler_is_refused():
    with pytest.raises(UserError, match="sampler"):
        physics(sampler="beam")


# -- experts --------------------------------------------------------------------------------------------------------


def test_few_tokens_read_few_experts():
    """One token of Qwen3-30B-A3B reads 8 of 128 experts per layer; a hundred read nearly all."""
    p = physics("h100", SPARSE, values={"engine.routing_skew": 0.0})
    one, many = (p.step(batch_of(n, 100)).shares["memory"] for n in (1, 200))
    stored = weights_byte(model_named(SPARSE), p.precision)
    bandwidth = p.device.memory.bandwidth_byte_per_s
    assert one < 0.3 * stored / bandwidth
    assert many > 0.9 * stored / bandwidth


def test_routers_with_favourites_touch_fewer_experts():
    even, skewed = (physics("h100", SPARSE, values={"engine.routing_skew": skew}) for skew in (0.0, 1.0))
    batch = batch_of(16, 100)
    assert skewed.step(batch).shares["memory"] < even.step(batch).shares["memory"]
