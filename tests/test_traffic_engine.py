"""Traffic: event by event against token by token, conservation, and what queueing theory says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import EngineSettings
from simulator.engine.cluster import Deployment, serve
from simulator.engine.routing import ROUTINGS
from simulator.engine.token_by_token import TokenByToken
from simulator.keys import KeyRule
from simulator.step import StepCost
from simulator.step_table import StepTable
from simulator.steps import Steps
from simulator.workload.traffic import Traffic

MANY = 10**6
RULES = {"full": (KeyRule(),), "window": (KeyRule(), KeyRule(24)), "chunks": (KeyRule(16, chunked=True), KeyRule())}


class Bent:
    """A smooth physics: the slower of computing and reading, a surcharge for prefill, quadratic attention."""

    idle_power_w = 11.0

    def __init__(self, rules=RULES["full"]):
        self.rules = rules

    def price(self, steps: Steps):
        reading = 6e-3 + 2e-5 * (steps.decode_keys.sum(axis=1) + steps.prefill_keys.sum(axis=1))
        computing = 1.5e-3 + 3e-4 * steps.new_tok + 2e-7 * steps.prefill_pairs.sum(axis=1)
        seconds = np.hypot(reading, computing) + 3e-5 * steps.sampled + 2e-3 * (steps.prefill_tok > 0)
        return StepCost(seconds, 250.0 * seconds + 0.02 * steps.new_tok, {})

    def step_of_sums(self, sums: Steps):
        columns = (np.array([getattr(sums, name)]) for name in Steps.__dataclass_fields__)
        cost = self.price(Steps(*columns))
        return StepCost(float(cost.seconds[0]), float(cost.joules[0]), {})


def deployment(engine: EngineSettings, kv_blocks: int = MANY, rules=RULES["full"], **more) -> Deployment:
    return Deployment(StepTable(Bent(rules), 10_000), engine, kv_blocks, **more)


def token_by_token(chosen: Deployment) -> TokenByToken:
    return TokenByToken(chosen.settings, chosen.kv_blocks, chosen.costs.rules, chosen.async_scheduling)


def both(traffic: Traffic, chosen: Deployment):
    from dataclasses import replace

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
        prompt = prompt + np.array([sum(tokens for _, tokens in text) for text in prefixes])
    engine = EngineSettings(
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(seats, 80)),
        block_size=size,
        enable_prefix_caching=draw(st.booleans()),
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
        engine, kv_blocks, RULES[draw(st.sampled_from(sorted(RULES)))], async_scheduling=draw(st.booleans()),
        replicas=draw(st.integers(1, 3)), routing=draw(st.sampled_from(sorted(ROUTINGS))),
        request_s=draw(st.sampled_from([0.0, 0.0123])), prefill_replicas=draw(st.sampled_from([0, 0, 1])),
        transfer_start_s=0.00211, transfer_tok_s=1.7e-5,
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
