"""Laws of splitting a model over devices: what each holds, sends and waits for."""

import numpy as np
import pytest
from deployments import (
    DENSE,
    HYBRID,
    LATENT,
    MODELS,
    SMALL,
    SPARSE,
    device_named,
    model_named,
    physics,
    splits_of,
    unlimited,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.batch import Batch, PrefillChunk
from simulator.engine import EngineSettings
from simulator.errors import UserError
from simulator.memory import kv_byte_per_tok, plan_memory, weights_byte
from simulator.model.layers import MoeFfn
from simulator.operators import plan_forward
from simulator.parallel import SINGLE, Parallelism
from simulator.precision import Precision

BF16 = Precision("bf16", "bf16", "bf16")
models = st.sampled_from(MODELS)


@st.composite
def split_models(draw):
    name = draw(models)
    return name, draw(st.sampled_from(splits_of(name)))


def messages(name, parallel):
    return {message.kind: message for message in plan_forward(model_named(name), BF16, parallel).messages}


# -- what each device holds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_divides_a_dense_model(tp):
    model, parallel = model_named(DENSE), Parallelism(tp=tp)
    replicated = 2.0 * (sum(g.count * g.norm_parameters for g in model.layers) + model.final_norm_parameters)
    split = weights_byte(model, BF16) - replicated
    assert weights_byte(model, BF16, parallel) == pytest.approx(split / tp + replicated, rel=1e-12)
    assert kv_byte_per_tok(model, BF16, parallel) == kv_byte_per_tok(model, BF16) / tp
    whole, part = plan_forward(model, BF16), plan_forward(model, BF16, parallel)
    products = [sum(g.in_features * g.out_features * g.count for g in plan.gemms) for plan in (whole, part)]
    assert products[1] * tp == products[0]
    pairs = [sum(a.count * a.decode_flop_per_pair for a in plan.attention) for plan in (whole, part)]
    assert pairs[1] * tp == pairs[0]


@given(split_models())
def test_the_devices_together_hold_the_whole_model(case):
    """What is copied (norms, routers, latents, few KV heads) makes it more, never less."""
    name, parallel = case
    model = model_named(name)
    replicas = 1 if parallel.shared_experts else parallel.dp
    assert weights_byte(model, BF16, parallel) * parallel.world_size >= weights_byte(model, BF16) * replicas * (
        1 - 1e-9
    )
    group = parallel.tp * parallel.pp
    assert kv_byte_per_tok(model, BF16, parallel) * group >= kv_byte_per_tok(model, BF16) * (1 - 1e-9)


@given(split_models())
def test_more_devices_never_hold_more_each(case):
    name, parallel = case
    model = model_named(name)
    assert weights_byte(model, BF16, parallel) <= weights_byte(model, BF16) * (1 + 1e-9)
    assert kv_byte_per_tok(model, BF16, parallel) <= kv_byte_per_tok(model, BF16) * (1 + 1e-9)


def test_kv_heads_are_copied_where_there_are_too_few():
    model = model_named(SMALL)  # two KV heads, twelve query heads
    whole, two, four = (kv_byte_per_tok(model, BF16, Parallelism(tp=tp)) for tp in (1, 2, 4))
    assert two == whole / 2 and four == two


def test_every_device_keeps_the_latents():
    model = model_named(LATENT)
    assert kv_byte_per_tok(model, BF16, Parallelism(tp=8)) == kv_byte_per_tok(model, BF16)


def test_recurrent_state_is_split():
    plans = [plan_forward(model_named(HYBRID), BF16, Parallelism(tp=tp)) for tp in (1, 4)]
    state = [sum(w.count * w.state_byte_per_sequence for w in plan.states) for plan in plans]
    assert state[1] * 4 == state[0]


@pytest.mark.parametrize(
    ("slices", "whole_experts"),
    [(Parallelism(tp=4), Parallelism(tp=4, ep=4)), (Parallelism(tp=8), Parallelism(tp=8, ep=8))],
)
def test_whole_experts_take_the_room_of_slices_of_all(slices, whole_experts):
    sizes = [weights_byte(model_named(SPARSE), BF16, parallel) for parallel in (slices, whole_experts)]
    assert sizes[0] == sizes[1]


def test_wide_expert_parallelism_spreads_experts_and_copies_attention():
    model = model_named(LATENT)
    sizes = [weights_byte(model, BF16, Parallelism(ep=ep, dp=ep)) for ep in (1, 8, 32)]
    experts = sum(
        g.count * g.ffn.experts * g.ffn.expert_parameters(model.hidden_size)
        for g in model.layers
        if isinstance(g.ffn, MoeFfn)
    )
    assert sizes[0] - sizes[1] == pytest.approx(2.0 * experts * (1 - 1 / 8))
    assert sizes[1] - sizes[2] == pytest.approx(2.0 * experts * (1 / 8 - 1 / 32))


@settings(deadline=None)
@given(split_models())
def test_more_devices_leave_more_room_for_the_cache(case):
    name, parallel = case
    model, device, settings = model_named(name), device_named("mi300x"), EngineSettings(max_num_seqs=64)
    try:
        one = plan_memory(model, device, BF16, settings).kv_blocks
    except UserError:
        return  # does not fit one device
    assert plan_memory(model, device, BF16, settings, parallel).kv_blocks >= one


def test_out_of_memory_counts_devices():
    model, device = model_named("deepseek-ai/DeepSeek-R1-Distill-Llama-70B"), device_named("a100-sxm-80gb")
    with pytest.raises(UserError, match="GiB are missing"):
        plan_memory(model, device, BF16, EngineSettings())
    plan_memory(model, device, BF16, EngineSettings(), Parallelism(tp=4))
    with pytest.raises(UserError, match="on each of 2 devices"):
        plan_memory(model, device_named("l4"), BF16, EngineSettings(), Parallelism(tp=2))


# -- what is sent ---------------------------------------------------------------------------------------------------


def test_one_device_sends_nothing():
    for name in MODELS:
        assert messages(name, SINGLE) == {} and messages(name, Parallelism(pp=2)) == {}


@pytest.mark.parametrize("name", MODELS)
def test_two_all_reduces_per_layer_and_one_for_the_embedding(name):
    model = model_named(name)
    found = messages(name, Parallelism(tp=2))
    parts = sum(group.count * (bool(group.mixer) + bool(group.ffn)) for group in model.layers)
    assert set(found) == {"all_reduce"}
    assert found["all_reduce"].count == 1 + parts
    assert found["all_reduce"].byte_per_tok == 2.0 * model.hidden_size and found["all_reduce"].world_size == 2
    if name == DENSE:
        assert parts == 2 * model.num_layers


def test_expert_parallelism_inside_a_tensor_group_reduces_as_before():
    assert messages(SPARSE, Parallelism(tp=4, ep=4)) == messages(SPARSE, Parallelism(tp=4))


def test_data_parallel_attention_gathers_and_scatters_around_the_experts():
    model, found = model_named(LATENT), messages(LATENT, Parallelism(ep=8, dp=8))
    sparse_layers = sum(group.count for group in model.layers if isinstance(group.ffn, MoeFfn))
    assert set(found) == {"all_gather", "reduce_scatter"}
    for message in found.values():
        assert (message.count, message.world_size) == (sparse_layers, 8)
        assert message.byte_per_tok == 2.0 * model.hidden_size
    assert set(messages(LATENT, Parallelism(tp=2, ep=8, dp=4))) == {"all_reduce", "all_gather", "reduce_scatter"}


def test_replicas_of_a_dense_model_do_not_talk():
    assert messages(DENSE, Parallelism(dp=4)) == {}


# -- what it costs --------------------------------------------------------------------------------------------------

DECODE = Batch((), np.full(32, 2000))
PREFILL = Batch((PrefillChunk(4096),))


@pytest.mark.parametrize("gpu", ["h100", "a100", "l4", "mi300x", "b200"])
@pytest.mark.parametrize("name", MODELS)
def test_communication_takes_time_exactly_where_there_is_any(gpu, name):
    for parallel in splits_of(name):
        p = physics(gpu, name, parallel=parallel)
        sends = parallel.tp > 1 or parallel.pp > 1 or parallel.shared_experts
        for batch in (DECODE, PREFILL):
            assert (p.step(batch).shares["communication"] > 0.0) == sends, parallel


@pytest.mark.parametrize("name", MODELS)
def test_splitting_layers_speeds_up_what_is_inside_them(name):
    """Memory, compute and attention of one device never grow with tensor parallelism."""
    parts = []
    for tp in (1, 2, 4):
        if Parallelism(tp=tp) in splits_of(name):
            shares = physics("h100", name, parallel=Parallelism(tp=tp)).step(PREFILL).shares
            parts.append(shares["memory"] + shares["compute"] + shares["attention"])
    assert parts == sorted(parts, reverse=True)


def test_tensor_parallelism_pays_for_a_large_model_with_fast_links_and_never_more_than_it_has_devices():
    large = "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"
    for batch in (DECODE, PREFILL):
        one, four = (physics("h100", large, parallel=Parallelism(tp=tp)).step(batch).seconds for tp in (1, 4))
        assert one / 4 < four < one


def test_slower_links_are_slower():
    fast, slow = device_named("h100"), device_named("h100-pcie")
    times = [
        physics(device=device, parallel=Parallelism(tp=4)).step(PREFILL).shares["communication"]
        for device in (fast, slow)
    ]
    assert times[0] < times[1]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64])
def test_a_pipeline_does_not_speed_up_one_sequence_and_passes_many_in_parallel(n):
    batch = Batch((), np.full(n, 2000))
    one, two, four = (physics("h100", parallel=Parallelism(pp=pp)).step(batch) for pp in (1, 2, 4))
    inside = [sum(c.shares[k] for k in ("memory", "compute", "attention")) for c in (one, two, four)]
    if n == 1:
        assert inside[1] == pytest.approx(inside[0]) and inside[2] == pytest.approx(inside[0])
    else:
        assert inside[0] * (1 + 1e-9) >= inside[1] >= inside[2] * (1 - 1e-9)
    assert inside[2] >= inside[0] / 4


def test_micro_batches_are_shares_of_the_sequences():
    """A step of 64 sequences in 4 stages: each stage sees 16 at a time, through the whole model."""
    p, q = (physics("h100", parallel=parallel) for parallel in (Parallelism(pp=4), SINGLE))
    split, quarter = p.step(Batch((), np.full(64, 2000))), q.step(Batch((), np.full(16, 2000)))
    for cause in ("memory", "compute", "attention"):
        assert split.shares[cause] == pytest.approx(quarter.shares[cause], rel=1e-12)


def test_energy_is_of_all_devices():
    one, replicas = (physics("h100", parallel=parallel) for parallel in (SINGLE, Parallelism(dp=4)))
    a, b = one.step(DECODE), replicas.step(DECODE)
    assert (b.seconds, b.joules) == (a.seconds, pytest.approx(4 * a.joules))
    assert replicas.idle_power_w == 4 * one.idle_power_w


@pytest.mark.parametrize("batch", [Batch((), np.full(1, 2000)), Batch((PrefillChunk(512),))])
def test_stages_that_wait_draw_no_dynamic_power(batch):
    """One sequence or prompt in four stages: the same bytes and FLOPs once, and four devices' static power."""
    one, four = (physics(device=unlimited("h100"), parallel=Parallelism(pp=pp)) for pp in (1, 4))
    static_w = one.idle_power_w + one.p.power.busy_w
    costs = [p.step(batch) for p in (one, four)]
    dynamic = [cost.joules - p.parallel.pp * static_w * cost.seconds for p, cost in zip((one, four), costs)]
    assert dynamic[1] == pytest.approx(dynamic[0], rel=0.01)


def test_shared_experts_serve_all_replicas():
    """Eight replicas of one token touch experts for eight tokens, of which a device holds an eighth."""
    replicas = physics("h100", SPARSE, parallel=Parallelism(ep=8, dp=8), values={"engine.routing_skew": 0.0})
    alone = physics("h100", SPARSE, values={"engine.routing_skew": 0.0})
    one, all_on_one = (p.step(Batch((), np.full(n, 100))).shares for p, n in ((replicas, 32), (alone, 256)))
    assert one["memory"] < all_on_one["memory"]


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tp", "pp", "ep", "dp"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2"])
def test_settings_are_whole_numbers(name, value):
    with pytest.raises(UserError, match=f"parallel setting {name} must be a whole number >= 1"):
        Parallelism(**{name: value})


def test_splits_that_vllm_refuses():
    with pytest.raises(UserError, match="ep = 3 must divide"):
        Parallelism(tp=4, ep=3)
    with pytest.raises(UserError, match="32 heads cannot be split over tp = 3"):
        Parallelism(tp=3).check(model_named(DENSE))
    with pytest.raises(UserError, match="has no experts, so ep = 2"):
        Parallelism(tp=2, ep=2).check(model_named(DENSE))
    with pytest.raises(UserError, match="32 layers cannot make 33 pipeline stages"):
        Parallelism(pp=33).check(model_named(DENSE))
    with pytest.raises(UserError, match="10 KV heads"):
        Parallelism(tp=4).check(model_named("microsoft/phi-4"))
    Parallelism(tp=2).check(model_named("microsoft/phi-4"))
    with pytest.raises(UserError, match="cannot be split"):
        physics("h100", DENSE, parallel=Parallelism(tp=5))


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [(SINGLE, 1), (Parallelism(tp=4), 4), (Parallelism(tp=4, ep=4), 1), (Parallelism(tp=4, ep=2), 2),
     (Parallelism(tp=2, ep=8, dp=4), 1), (Parallelism(ep=8, dp=8), 1), (Parallelism(tp=2, dp=2), 2)],
)  # fmt: skip
def test_devices_per_expert(parallel, expected):
    assert parallel.expert_tp == expected
