"""Counting of keys, pairs, state and experts against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.batch import PrefillChunk
from simulator.model import load_model
from simulator.operators import AttentionWork, plan_forward, touched_experts
from simulator.precision import Precision

BF16 = Precision("bf16", "bf16", "bf16")
windows = st.one_of(st.none(), st.integers(1, 300))


def attention(window, causal=True):
    return AttentionWork(1, 1, 1, 1, 1.0, 1.0, window, causal)


@given(st.integers(1, 400), st.integers(0, 400), windows)
def test_prefill_pairs_match_counting_one_by_one(new, cached, window):
    pairs, read = attention(window).keys_read(PrefillChunk(new, cached))
    seen = [min(position + 1, window or 10**9) for position in range(cached, cached + new)]
    assert pairs == pytest.approx(sum(seen))
    assert read == min(cached + new, new + (window or 10**9) - 1)


@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 300), st.integers(1, 50))
def test_chunked_attention_matches_counting_one_by_one(new, cached, chunk, steps):
    """Llama 4: a token sees the positions of its own chunk, up to itself."""
    work = AttentionWork(1, 1, 1, 1, 1.0, 1.0, chunk, causal=True, chunked=True)
    seen = [position % chunk + 1 for position in range(cached, cached + new)]
    assert work.keys_read(PrefillChunk(new, cached))[0] == pytest.approx(sum(seen))
    found = work.decode_keys(np.array([cached, new]), steps)
    expected = [(cached + j) % chunk + 1 + (new + j) % chunk + 1 for j in range(steps)]
    assert found.tolist() == expected


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8), st.integers(1, 60), windows)
def test_decode_keys_match_counting_one_by_one(contexts, steps, window):
    found = attention(window).decode_keys(np.array(contexts), steps)
    expected = [sum(min(c + j + 1, window or 10**9) for c in contexts) for j in range(steps)]
    assert found.tolist() == pytest.approx(expected)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 200))
def test_pairs_do_not_depend_on_how_a_prompt_is_cut_into_chunks(first, second, cached):
    work = attention(None)
    whole = work.keys_read(PrefillChunk(first + second, cached))[0]
    parts = work.keys_read(PrefillChunk(first, cached))[0] + work.keys_read(PrefillChunk(second, cached + first))[0]
    assert whole == parts


def test_bidirectional_attention_sees_everything():
    assert attention(None, causal=False).keys_read(PrefillChunk(10, 0))[0] == 100.0


def test_touched_experts_closed_forms():
    assert touched_experts(128, 8, 1) == pytest.approx(8.0)
    assert touched_experts(128, 8, 10**4) == pytest.approx(128.0)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"])
def test_dense_flops_are_two_per_weight_outside_the_embedding(name):
    model = load_model(name)
    weights = sum(g.in_features * g.out_features * g.count for g in plan_forward(model, BF16).gemms)
    small = 0.001 * model.parameters()  # norms and biases belong to no product
    assert weights == pytest.approx(model.parameters() - model.embedding_parameters(), abs=small)


def test_mixture_reads_only_what_tokens_touch():
    plan = plan_forward(load_model("Qwen/Qwen3-30B-A3B"), BF16)
    experts = [g for g in plan.gemms if g.rows == "experts"]
    assert {g.experts for g in experts} == {128}
    one_token = sum(g.in_features * g.out_features * g.count * g.experts_per_token for g in experts)
    always = sum(g.in_features * g.out_features * g.count for g in plan.gemms if g.rows != "experts")
    assert one_token + always == pytest.approx(3.3e9 - 0.31e9, rel=0.03)  # 3.3 B active, token table not multiplied
