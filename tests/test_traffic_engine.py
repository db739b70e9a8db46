"""Traffic: event by event against token by token, and what neither may lose."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_physics import MANY, RULES, Bent, deployment, token_by_token

from simulator.engine import EngineSettings
from simulator.engine.routing import ROUTINGS
from simulator.traffic.cluster import Deployment, _Run, serve
from simulator.workload.traffic import Traffic


def both(traffic: Traffic, chosen: Deployment):
    """The same run, event by event and token by token."""
    return serve(traffic, chosen), serve(traffic, replace(chosen, batcher=token_by_token))


@st.composite
def runs(draw):
    """(traffic, deployment), small and often short of KV blocks."""
    n = draw(st.integers(1, 12))
    prompt = np.array(draw(st.lists(st.integers(1, 60), min_size=n, max_size=n)))
    output = np.array(draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)))
    size, seats = draw(st.sampled_from([1, 2, 4, 16])), draw(st.integers(1, 6))
    prefixes = None
    if draw(st.booleans()):
        texts = [
            tuple((name, draw(st.integers(1, 20))) for name in draw(st.lists(st.sampled_from("abc"), max_size=3)))
            for _ in range(n)
        ]
        prefixes = tuple(tuple((part, 1 + ord(part) % 20) for part, _ in text) for text in texts)
        beside = draw(st.sampled_from([0, 1]))  # 0: prompts that are shared wholly
        shared = np.array([sum(tokens for _, tokens in text) for text in prefixes])
        prompt = np.where(shared > 0, beside * prompt, prompt) + shared
    engine = EngineSettings(
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(seats, 80)),
        block_size=size,
        enable_prefix_caching=draw(st.booleans()),
        enable_chunked_prefill=draw(st.sampled_from([True, True, False])),
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
    )
    if draw(st.booleans()):
        gaps = draw(st.lists(st.floats(0.0, 0.3), min_size=n, max_size=n))
        times = {"arrival_s": np.cumsum(np.array(gaps) ** 2)}
    else:
        times = {"clients": draw(st.integers(1, n))}
    priority = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))) if draw(st.booleans()) else None
    least = int((-(-(prompt + output) // size)).max())
    kv_blocks = draw(st.one_of(st.integers(least, 3 * least), st.just(MANY)))
    chosen = deployment(
        engine, kv_blocks, Bent(RULES[draw(st.sampled_from(sorted(RULES)))]), async_scheduling=draw(st.booleans()),
        replicas=draw(st.integers(1, 3)), routing=draw(st.sampled_from(sorted(ROUTINGS))),
        request_s=draw(st.sampled_from([0.0, 0.0123])), prompt_tok_s=draw(st.sampled_from([0.0, 3.1e-4])),
        prefill_replicas=draw(st.sampled_from([0, 0, 1])),
        transfer_start_s=0.00211, transfer_tok_s=1.7e-5, micro_batches=draw(st.sampled_from([1, 1, 3])),
    )  # fmt: skip
    return Traffic(prompt, output, shared_prefix=prefixes, priority=priority, **times), chosen


TIMES = ("arrival_s", "engine_s", "scheduled_s", "first_token_s", "finished_s")
COUNTS = ("cached_tok", "recomputed_tok", "preemptions", "replica")


@settings(max_examples=300, deadline=None)
@given(runs())
def test_event_by_event_and_token_by_token_agree(drawn):
    fast, slow = both(*drawn)
    for name in COUNTS:
        assert getattr(fast.requests, name).tolist() == getattr(slow.requests, name).tolist(), name
    for name in TIMES:
        np.testing.assert_allclose(
            getattr(fast.requests, name), getattr(slow.requests, name), rtol=1e-9, atol=1e-12, err_msg=name
        )
    assert fast.end_s == pytest.approx(slow.end_s, rel=1e-9)
    assert fast.energy_j() == pytest.approx(slow.energy_j(), rel=1e-9)
    assert (fast.steps.steps.sum(), fast.steps.gaps.sum()) == (slow.steps.steps.sum(), slow.steps.gaps.sum())
    assert np.sort(fast.torn_gap_s) == pytest.approx(np.sort(slow.torn_gap_s), rel=1e-9)


# -- nothing is lost -------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(runs(), st.booleans())
def test_requests_tokens_and_blocks_are_conserved(drawn, slow):
    traffic, chosen = drawn
    chosen = replace(chosen, batcher=token_by_token) if slow else chosen
    run = _Run(traffic, chosen, None)
    served = run.run()
    requests, steps = served.requests, served.steps
    answered = ~requests.refused
    assert np.isfinite(requests.finished_s[answered]).all() and np.isnan(requests.finished_s[~answered]).all()
    order = (requests.arrival_s, requests.engine_s, requests.scheduled_s, requests.first_token_s, requests.finished_s)
    for earlier, later in pairwise(order):
        assert (earlier[answered] <= later[answered] + 1e-12).all()
    # Tokens: what the steps wrote is what was asked for; what they computed is what had to be.
    prefilled_elsewhere = answered.sum() if chosen.prefill_replicas else 0
    written = (steps.sampled * steps.steps).sum()
    assert written == requests.output_tok[answered].sum() + prefilled_elsewhere
    computed = (steps.prefill_tok + steps.decode_sequences * steps.steps).sum()
    had_to = requests.prompt_tok + requests.output_tok - 1 - requests.cached_tok + requests.recomputed_tok
    assert computed == had_to[answered].sum() + prefilled_elsewhere
    # Blocks: never more than there are, and at the end nobody holds one.
    assert steps.kv_blocks.max(initial=0) <= chosen.kv_blocks
    for replica in run._replicas:
        assert_no_block_is_held(replica.batcher, chosen)


def assert_no_block_is_held(batcher, chosen: Deployment):
    assert batcher.plan() == 0 and batcher.idle  # a last plan sees the last finishes
    if hasattr(batcher, "_cache"):
        cache = batcher._cache
        assert (cache.held, cache.free + cache.idle_blocks) == (0, chosen.kv_blocks)
        tree = cache.tree
    else:
        assert batcher._held_in(batcher.step) == 0
        tree = batcher.tree
    assert (tree.held_blocks, tree.idle_blocks) == (0, sum(node.blocks for node in tree._idle))
    assert tree.idle_blocks <= chosen.kv_blocks


@settings(max_examples=60, deadline=None)
@given(runs())
def test_the_same_run_twice_is_the_same(drawn):
    first, second = serve(*drawn), serve(*drawn)
    for records, again in ((first.requests, second.requests), (first.steps, second.steps)):
        for name in records.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(records, name), getattr(again, name))
