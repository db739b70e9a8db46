"""What a forward pass consists of: FLOPs, experts, small kernels, against sums by hand."""

import dataclasses

import pytest
from deployments import HYBRID, LATENT, MODELS, SPARSE, WINDOWED, model_named
from hypothesis import given
from hypothesis import strategies as st

from simulator.kernels.moe import touched_experts
from simulator.model import load_model
from simulator.operators import expert_kernel, plan_forward
from simulator.precision import Precision

BF16 = Precision("bf16", "bf16", "bf16")


def weights(plan):
    """Weights of the matrix products of one pass."""
    return sum(g.in_features * g.out_features * g.count for g in plan.gemms)


def test_touched_experts_closed_forms():
    assert touched_experts(128, 8, 1) == pytest.approx(8.0)
    assert touched_experts(128, 8, 10**4) == pytest.approx(128.0)
    assert touched_experts(128, 8, 16) == pytest.approx(128 * (1 - (1 - 8 / 128) ** 16))
    assert touched_experts(8, 8, 1) == pytest.approx(8.0)


@given(st.integers(1, 1000), st.sampled_from([(8, 2), (32, 4), (128, 8), (256, 8)]), st.floats(0.0, 1.5))
def test_touched_experts_grow_with_tokens_up_to_what_is_routed_and_held(tokens, sizes, skew):
    experts, chosen = sizes
    found, more = (float(touched_experts(experts, chosen, n, skew)) for n in (tokens, tokens + 1))
    assert chosen * (1 - 1e-6) <= found <= more * (1 + 1e-12) <= experts * (1 + 1e-9)
    assert found <= tokens * chosen * (1 + 1e-6)
    assert found <= float(touched_experts(experts, chosen, tokens)) * 1.02  # skew: fewer are touched (classes: to 1 %)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"])
def test_dense_flops_are_two_per_weight_outside_the_embedding(name):
    model = load_model(name)
    small = 0.001 * model.parameters()  # norms and biases belong to no product
    found = weights(plan_forward(model, BF16))
    assert found == pytest.approx(model.parameters() - model.embedding_parameters(), abs=small)


def test_mixture_reads_only_what_tokens_touch():
    plan = plan_forward(model_named(SPARSE), BF16)
    assert {(work.experts, work.experts_per_token) for work in plan.experts} == {(128, 8)}
    one_token = sum(w.count * w.experts_per_token * 3 * w.hidden * w.intermediate for w in plan.experts)
    # 3.3 B active; the token table is not multiplied.
    assert one_token + weights(plan) == pytest.approx(3.3e9 - 0.31e9, rel=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_appears_once(name):
    model, plan = model_named(name), plan_forward(model_named(name), BF16)
    mixers = sum(work.count for work in (*plan.attention, *plan.states))
    assert mixers == sum(group.count for group in model.layers if group.mixer)
    assert sum(work.count for work in plan.experts) == sum(
        group.count for group in model.layers if hasattr(group.ffn, "experts")
    )
    stored = sum(work.count * work.kv_elements_per_tok for work in plan.attention)
    assert stored == model.kv_elements_per_token
    state = sum(work.count * work.state_byte_per_sequence for work in plan.states)
    assert state == 4.0 * model.state_elements
    assert plan.launches > plan.small_kernels > model.num_layers
    assert sum(g.count for g in plan.gemms if g.rows == "sampled") == 1


def test_windows_and_full_attention_are_told_apart():
    works = plan_forward(model_named(WINDOWED), BF16).attention
    assert sorted(work.rule for work in works) == [0, 1]
    assert max(work.count for work in works) == pytest.approx(5 * min(work.count for work in works), abs=4)


def test_latent_attention_decodes_on_the_latent_and_prefills_on_heads():
    work = plan_forward(model_named(LATENT), BF16).attention[0]
    assert work.kv_elements_per_tok == work.decode_head_dim == 512 + 64
    assert work.prefill_flop_per_pair == 2 * 128 * (192 + 128)
    assert work.decode_flop_per_pair == 2 * 128 * (576 + 512)
    assert work.expand_flop_per_cached_tok == 2 * 512 * 128 * (128 + 128)


def test_recurrent_layers_have_no_keys():
    plan = plan_forward(model_named(HYBRID), BF16)
    assert sum(work.count for work in plan.attention) == 4 and sum(work.count for work in plan.states) == 27


@pytest.mark.parametrize(
    ("weights", "activations", "kernel"),
    [
        ("bf16", "bf16", "moe16"),
        ("bf16", "fp32", "moe16"),
        ("fp8", "bf16", "moe16"),
        ("fp8", "fp8", "moe8"),
        ("int8", "int8", "moe8"),
        ("fp8-block", "fp8", "moe8_block"),
        ("int4", "bf16", "moe4_weight_only"),
        ("mxfp4", "bf16", "moe_mxfp4"),
        ("mxfp4", "fp8", "moe_mxfp4_a8"),
        ("mxfp4", "mxfp4", "moe_mxfp4_a8"),
        ("nvfp4", "nvfp4", "moe_nvfp4"),
    ],
)
def test_experts_run_on_the_kernels_of_their_precision(weights, activations, kernel):
    assert expert_kernel(Precision(weights, activations, "bf16")) == kernel


@pytest.mark.parametrize("name", MODELS)
def test_quantising_touches_layers_only(name):
    """Router, embedding and head stay in 16 bit; experts alone are narrow where the checkpoint says so."""
    model = model_named(name)
    plans = [plan_forward(model, dataclasses.replace(BF16, weights=w, experts_only=e)) for w, e in
             (("bf16", False), ("fp8", False), ("fp8", True))]  # fmt: skip
    assert len({weights(plan) for plan in plans}) == 1
    head = [{g.weight_byte for g in plan.gemms if g.rows == "sampled"} for plan in plans]
    assert head == [{2.0}] * 3
    assert {g.weight_byte for g in plans[2].gemms} == {2.0}
    assert all(work.weight_byte == 1.0 for plan in plans[1:] for work in plan.experts)
    assert min(g.weight_byte for g in plans[1].gemms) == 1.0
