"""CUDA graphs: which sizes an engine records, what is padded, and what a step costs inside and outside them."""

import numpy as np
import pytest
from deployments import SMALL, SPARSE, physics
from hypothesis import given
from hypothesis import strategies as st

from simulator.batch import Batch, PrefillChunk
from simulator.cuda_graphs import ANY_SIZE, EAGER, RULES, CudaGraphs, captured_sizes, graph_rule
from simulator.errors import UserError
from simulator.floats import Floats
from simulator.steps import Steps

V1 = RULES["vllm-0.11.1"].graphs(256, 8192)


def decoding(n, context=100):
    return Batch((), np.full(n, context))


def test_sizes_that_vllm_records():
    assert captured_sizes(16) == (1, 2, 4, 8, 16)
    assert captured_sizes(3) == (1, 2)
    assert captured_sizes(288)[-4:] == (248, 256, 272, 288)
    assert captured_sizes(272, coarse=False)[-3:] == (256, 264, 272)
    assert len(captured_sizes(512)) == 3 + 31 + 17


def test_the_largest_size_follows_the_engines_limits():
    rule = RULES["vllm-0.11.1"]
    assert rule.graphs(8, 8192).sizes[-1] == 16
    assert rule.graphs(1024, 8192).sizes[-1] == 512
    assert rule.graphs(1024, 128).sizes[-1] == 128
    assert rule.graphs(8, 8192, largest=2048).sizes[-1] == 2048
    assert RULES["vllm-v0"].graphs(4096, 8192).sizes[-1] == 256


@pytest.mark.parametrize(
    ("engine", "version", "v1", "rule"),
    [
        ("vllm", (0, 18, 0), True, "vllm-0.11.1"),
        ("vllm", (0, 11, 1), True, "vllm-0.11.1"),
        ("vllm", (0, 11, 0), True, "vllm-0.11"),
        ("vllm", (0, 9, 2), True, "vllm-0.8"),
        ("vllm", (0, 8, 6), False, "vllm-v0"),
        ("vllm", (0, 6, 6), True, "vllm-v0"),
        ("sglang", (0, 5), True, "any size"),
    ],
)
def test_rules_by_version(engine, version, v1, rule):
    assert graph_rule(engine, version, v1) == rule


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 1)), min_size=1, max_size=20), st.sampled_from(
    [V1, ANY_SIZE, EAGER, RULES["vllm-0.8"].graphs(64, 2048), CudaGraphs((4, 100), "full", "full")]
))  # fmt: skip
def test_one_step_is_padded_like_many(steps, graphs):
    tokens, prefill = (np.array(column) for column in zip(*steps))
    piecewise, eager = graphs.modes(tokens, prefill)
    padded = graphs.padded(tokens, eager)
    assert (padded >= tokens).all()
    for i, (n, new) in enumerate(steps):
        assert graphs.modes(n, new, Floats) == (piecewise[i], eager[i])
        assert graphs.padded_one(n, eager[i]) == padded[i]


def test_bad_graphs_are_refused():
    for sizes in ((), (0, 1), (4, 2), (2, 2)):
        with pytest.raises(UserError, match="sizes"):
            CudaGraphs(sizes)
    with pytest.raises(UserError, match="mode"):
        CudaGraphs(None, "whole")


def test_padded_sequences_cost_what_they_would_cost_but_for_attention_and_sampling():
    p = physics("h100", SMALL, cuda_graphs=V1)
    exact = physics("h100", SMALL)
    padded, full = p.step(decoding(33)), exact.step(decoding(40))
    assert padded.shares["memory"] + padded.shares["compute"] == pytest.approx(
        exact.step(decoding(40)).shares["memory"] + exact.step(decoding(40)).shares["compute"], rel=0.02
    )
    assert padded.shares["attention"] == exact.step(decoding(33)).shares["attention"] < full.shares["attention"]
    assert padded.shares["sampler"] == exact.step(decoding(33)).shares["sampler"] < full.shares["sampler"]
    assert p.step(decoding(40)).seconds == full.seconds  # a recorded size


def test_padding_touches_more_experts():
    padded, exact = (physics("h100", SPARSE, cuda_graphs=graphs).step(decoding(5)) for graphs in (V1, True))
    assert padded.shares["memory"] > 1.2 * exact.shares["memory"]


def test_above_the_largest_size_every_kernel_is_launched():
    values = {"engine.eager_launch_s": 5e-4}
    p = physics("h100", SMALL, values=values, cuda_graphs=RULES["vllm-0.11.1"].graphs(16, 8192))
    assert p.step(decoding(33)).seconds >= p.plan.launches * 5e-4 > p.step(decoding(32)).seconds


def test_short_prompts_replay_the_stretches_between_attention_layers():
    values = {"engine.eager_launch_s": 5e-4}
    p = physics("h100", SMALL, values=values, cuda_graphs=V1)
    short, long = (p.step(Batch((PrefillChunk(n),))) for n in (512, 513))
    assert p.plan.piecewise_launches * 5e-4 <= short.seconds < p.plan.launches * 5e-4 <= long.seconds


def test_arrays_and_floats_agree_on_padding():
    p = physics("h100", SPARSE, cuda_graphs=V1)
    batches = [decoding(33), decoding(600), Batch((PrefillChunk(77),), np.full(9, 50)), Batch((PrefillChunk(2000),))]
    costs = p.price(Steps.from_batches(batches, p.rules))
    assert costs.seconds == pytest.approx([p.step(batch).seconds for batch in batches], rel=1e-12)
