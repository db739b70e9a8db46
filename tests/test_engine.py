"""The serving engine: closed forms, conservation laws, and macro-steps against single steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import simpy
from fake_physics import FakeStepModel
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import EngineSettings, Server
from simulator.engine.kv_cache import KvCache, common_prefix_tok
from simulator.engine.sequence import Sequence
from simulator.errors import UserError

PHYSICS = FakeStepModel()


def serve(calls, kv_blocks=1000, step_by_step=False, physics=PHYSICS, **engine):
    """Submit calls (time, prompt parts, output tokens) to a fresh server and run them all to the end."""
    env = simpy.Environment()
    server = Server(env, physics, EngineSettings(**engine), kv_blocks, step_by_step)

    def client(at_s, prompt, output_tok):
        yield env.timeout(at_s)
        sequence = server.submit(prompt, output_tok, "call")
        yield sequence.done

    env.run(until=env.all_of([env.process(client(*call)) for call in calls]))
    return server, [server.records[i] for i in range(len(calls))]


class Recorder:
    """The fake physics, remembering what every single step was made of."""

    idle_power_w = PHYSICS.idle_power_w

    def __init__(self):
        self.batches = []

    def step(self, batch):
        self.batches.append(batch)
        return PHYSICS.step(batch)


def texts(n, tokens):
    """n prompts without a common prefix."""
    return [(("text", i), tokens) for i in range(n)]


# -- closed forms --------------------------------------------------------------------------------------------


def test_one_call_takes_its_prefill_and_one_decode_step_per_further_token():
    _, (record,) = serve([(0.0, (("p", 100),), 4)])
    assert record.ttft_s == pytest.approx(PHYSICS.prefill_s(100), rel=1e-12)
    decode = sum(PHYSICS.decode_s([100 + j]) for j in range(3))
    assert record.finished_s == pytest.approx(PHYSICS.prefill_s(100) + decode, rel=1e-12)
    assert record.tpot_s == pytest.approx(decode / 3, rel=1e-12)


def test_one_token_output_ends_with_the_prefill():
    server, (record,) = serve([(0.0, (("p", 40),), 1)])
    assert record.first_token_s == record.finished_s == pytest.approx(PHYSICS.prefill_s(40))
    assert server.computed_tok == 40


def test_chunked_prefill_splits_at_the_token_budget():
    _, (record,) = serve([(0.0, (("p", 20),), 1)], max_num_seqs=4, max_num_batched_tokens=8)
    assert record.ttft_s == pytest.approx(2 * PHYSICS.prefill_s(8) + PHYSICS.prefill_s(4))


def test_mixed_step_serves_decode_first_and_counts_the_step_once():
    # B arrives during A's prefill; the next step decodes A (1 token) and prefills 7 of B's 10 tokens, then 3.
    _, (a, b) = serve([(0.0, (("a", 8),), 10), (0.001, (("b", 10),), 2)], max_num_seqs=4, max_num_batched_tokens=8)
    first, second = PHYSICS.prefill_s(8), PHYSICS.base_s + 8 * PHYSICS.token_s + 8 * PHYSICS.context_s
    third = PHYSICS.base_s + 4 * PHYSICS.token_s + 9 * PHYSICS.context_s
    assert a.first_token_s == pytest.approx(first)
    assert b.scheduled_s == pytest.approx(first)
    assert b.first_token_s == pytest.approx(first + second + third)


def test_prefills_share_a_step_up_to_the_token_budget():
    recorder = Recorder()
    calls = [(0.0, (part,), 1) for part in texts(3, 30)]
    serve(calls, physics=recorder, step_by_step=True, max_num_seqs=4, max_num_batched_tokens=50)
    chunks = [[(c.new_tok, c.cached_tok, c.completes) for c in batch.prefill] for batch in recorder.batches]
    assert chunks == [[(30, 0, True), (20, 0, False)], [(10, 20, True), (30, 0, True)]]


def test_peak_running_is_the_fullest_step_not_the_last():
    server, _ = serve([(0.0, (part,), output) for part, output in zip(texts(3, 16), (2, 2, 9))])
    assert server.peak_running == 3


def test_calls_of_a_batch_end_when_their_own_tokens_are_written():
    _, (a, b) = serve([(0.0, (("a", 32),), 3), (0.0, (("b", 32),), 5)])
    start = PHYSICS.prefill_s(64)
    both = sum(PHYSICS.decode_s([32 + j, 32 + j]) for j in range(2))
    alone = sum(PHYSICS.decode_s([34 + j]) for j in range(2))
    assert a.finished_s == pytest.approx(start + both)
    assert b.finished_s == pytest.approx(start + both + alone)


def test_a_queue_of_one_seat_is_the_serial_sum():
    calls = [(0.0, (part,), output) for part, output in zip(texts(5, 48), (7, 1, 30, 4, 12))]
    _, records = serve(calls, max_num_seqs=1)
    alone = [serve([(0.0, prompt, output)])[1][0].finished_s for _, prompt, output in calls]
    assert [record.finished_s for record in records] == pytest.approx(list(np.cumsum(alone)))


def test_arrival_joins_at_the_next_step_boundary():
    _, (a, b) = serve([(0.0, (("a", 16),), 200), (1.0, (("b", 16),), 2)])
    edges = PHYSICS.prefill_s(16) + np.cumsum([PHYSICS.decode_s([16 + j]) for j in range(199)])
    assert b.scheduled_s == pytest.approx(edges[np.searchsorted(edges, 1.0)], rel=1e-12)
    assert b.submitted_s == 1.0
    assert a.finished_s > edges[-1]  # B's prefill and decode slowed A down


@pytest.mark.parametrize("barrier", [False, True])
def test_reaction_to_a_finished_call_is_scheduled_without_missing_a_step(barrier):
    env = simpy.Environment()
    server = Server(env, PHYSICS, EngineSettings(), 1000)
    server.submit((("long", 16),), 500, "long")
    short = [server.submit(((("short", i), 16),), 9, "short") for i in range(3)]

    def react():
        if barrier:
            yield env.all_of([env.all_of([s.done for s in short])])
        else:
            for sequence in short:
                yield sequence.done
        yield server.submit((("next", 16),), 3, "next").done

    env.run(until=env.process(react()))
    assert server.records[4].scheduled_s == server.records[3].finished_s == server.records[4].submitted_s


# -- prefix cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "cached"), [(256, 240), (100, 96), (257, 256), (16, 0), (17, 16), (5, 0)])
def test_fork_shares_whole_blocks_and_recomputes_at_least_one_token(prompt, cached):
    server, records = serve([(0.0, (("p", prompt),), 5)] * 4)
    assert [record.cached_tok for record in records] == [0, cached, cached, cached]
    assert server.peak_running == 4
    # one prefill plus the remainders, all in the first step
    assert records[0].first_token_s == pytest.approx(PHYSICS.prefill_s(prompt + 3 * (prompt - cached)))
    assert len({record.first_token_s for record in records}) == 1


def test_shared_blocks_count_once_in_the_peak():
    server, _ = serve([(0.0, (("p", 160),), 33)] * 4)
    # 9 of 10 prompt blocks are shared; each call adds its copy of the last one and 32 tokens of output
    assert server.cache.peak_held == 9 + 4 * 3


def test_prompt_behind_an_output_hits_the_output_too():
    env = simpy.Environment()
    server = Server(env, PHYSICS, EngineSettings(), 1000)

    def client():
        drafts = [server.submit((("p", 100),), 60 + 10 * i, "draft") for i in range(3)]
        for draft in drafts:
            yield draft.done
        outputs = [(("output", i), 60 + 10 * i) for i in range(3)]
        for order in ((0, 1, 2), (2, 1), (1,)):
            prompt = (("p", 100), *(outputs[i] for i in order), ("question", 40))
            yield server.submit(prompt, 2, "reader").done

    env.run(until=env.process(client()))
    # KV exists for prompt + output - 1 tokens; only the first draft of the text is a hit
    assert [server.records[i].cached_tok for i in (3, 4, 5)] == [159 // 16 * 16, 179 // 16 * 16, 169 // 16 * 16]


def test_text_read_before_is_a_hit_as_deep_as_it_was_read():
    calls = [(0.0, (("p", 64), ("w", 50)), 2), (9.0, (("p", 64), ("w", 50), ("x", 30)), 2), (18.0, (("w", 50),), 2)]
    _, records = serve(calls)
    assert [record.cached_tok for record in records] == [0, 114 // 16 * 16, 0]


def test_without_prefix_caching_every_prompt_is_computed():
    server, records = serve([(0.0, (("p", 256),), 5)] * 3, enable_prefix_caching=False)
    assert [record.cached_tok for record in records] == [0, 0, 0]
    assert server.cache.free == server.cache.blocks


def test_least_recently_used_prefix_is_evicted_first_from_its_end():
    cache = KvCache(10, 16)

    def visit(name, tokens):
        hit = cache.match(((name, tokens),), tokens - 1)
        holding = cache.admit(hit, tokens)
        cache.release(holding, ((name, tokens),), tokens)
        return hit[1]

    assert [visit("a", 64), visit("b", 64), visit("a", 64)] == [0, 0, 3]
    assert visit("c", 64) == 0  # needs 4 blocks, 2 are free: two of b's go, its last ones
    assert cache.match((("a", 64),), 64)[1] == 4
    assert cache.match((("b", 64),), 64)[1] == 2
    assert cache.match((("c", 64),), 64)[1] == 4


stories = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=4).map(tuple),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=25,
)


def recount(cache, holdings):
    """(held, idle) blocks counted from the tree and the holdings alone."""
    held, idle, todo = sum(h.private for h in holdings), 0, list(cache.tree.root.children.values())
    while todo:
        node = todo.pop()
        assert node.blocks > 0
        assert node.refs == sum(_on_path(node, holding) for holding in holdings)
        held, idle = (held + node.blocks, idle) if node.refs else (held, idle + node.blocks)
        todo.extend(node.children.values())
    return held, idle


def _on_path(node, holding):
    above = holding.node
    while above is not None and above is not node:
        above = above.parent
    return above is node


@given(stories, st.integers(10, 60))
@settings(deadline=None, max_examples=150)
def test_cache_books_balance_whatever_comes_and_goes(story, blocks):
    cache = KvCache(blocks, 8)
    running = []
    for parts, keep in story:
        total = sum(tokens for _, tokens in parts)
        hit = cache.match(parts, total - 1)
        assert hit[1] * 8 < total
        holding = cache.admit(hit, total)
        if holding is None:
            assert cache.blocks_for(total) - hit[1] > cache.available - _idle_on_path(cache, hit)
        else:
            assert holding.blocks == cache.blocks_for(total)
            cache.register(holding, parts, total)
            running.append((holding, parts, total))
        while len(running) > keep:
            cache.release(*running.pop(0))
        held, idle = recount(cache, [entry[0] for entry in running])
        assert (held, idle) == (cache.held, cache.idle_blocks)
        assert cache.free >= 0
        assert held <= cache.peak_held <= blocks
    for entry in running:
        cache.release(*entry)
    assert cache.held == 0
    assert cache.free + cache.idle_blocks == blocks


def _idle_on_path(cache, hit):
    node, cached = hit
    total = 0
    while node is not cache.tree.root:
        total += (min(node.end, cached) - node.start) if node.refs == 0 else 0
        node = node.parent
    return total


@given(stories)
@settings(deadline=None, max_examples=150)
def test_in_a_large_cache_a_hit_is_the_longest_common_prefix_with_anything_seen(story):
    cache, seen = KvCache(10_000, 8), []
    for parts, _ in story:
        total = sum(tokens for _, tokens in parts)
        longest = max((min(common_prefix_tok(parts, old), total - 1) for old in seen), default=0)
        hit = cache.match(parts, total - 1)
        assert hit[1] == longest // 8
        cache.release(cache.admit(hit, total), parts, total)
        seen.append(parts)


# -- shortage of blocks --------------------------------------------------------------------------------------


def test_calls_wait_for_blocks_in_order_of_arrival():
    calls = [(0.001 * i, (part,), 20) for i, part in enumerate(texts(4, 100))]
    server, records = serve(calls, kv_blocks=9)  # each call needs 8 blocks in the end, 7 for its prompt
    assert server.peak_running == 1
    assert all(a.finished_s <= b.scheduled_s for a, b in pairwise(records))


def test_preempted_call_is_recomputed_and_the_first_call_is_not_delayed_by_it():
    calls = [(0.0, (part,), 100) for part in texts(2, 64)]
    server, (first, second) = serve(calls, kv_blocks=14, enable_prefix_caching=False)
    assert first.preemptions == 0
    assert second.preemptions >= 1
    # both grow to 7 blocks = 112 tokens; then the second gives way, with its 112 computed tokens
    assert second.recomputed_tok >= 112
    assert second.finished_s > first.finished_s
    assert server.cache.peak_held <= 14
    assert server.computed_tok == 2 * (64 + 99) + second.recomputed_tok


def test_a_preempted_call_goes_back_to_the_head_of_the_queue():
    calls = [(0.0, (part,), output) for part, output in zip(texts(3, 64), (100, 100, 1))]
    _, records = serve(calls, kv_blocks=14, max_num_seqs=2, enable_prefix_caching=False)
    assert [r.preemptions for r in records] == [0, 1, 0]
    # when the second gives way there is room for the small third call, but it has to stay behind the second
    assert records[2].scheduled_s == records[0].finished_s


def test_nobody_is_admitted_in_a_step_that_had_to_preempt():
    recorder = Recorder()
    calls = [(0.0, (part,), 60) for part in texts(2, 64)]
    engine = {"max_num_seqs": 2, "max_num_batched_tokens": 16, "enable_prefix_caching": False}
    serve(calls, kv_blocks=12, physics=recorder, step_by_step=True, **engine)
    steps = [(len(batch.prefill), len(batch.decode_context_tok)) for batch in recorder.batches]
    preempting = len(steps) - 1 - steps[::-1].index((0, 2)) + 1
    assert steps[preempting : preempting + 2] == [(0, 1), (1, 1)]


def test_tokens_that_others_computed_meanwhile_are_hits_not_recomputation():
    def restarted(*hits, computed):
        sequence = Sequence(0, "call", (("p", 200),), 200, 5, 0.0, (), None)
        for hit in hits:
            sequence.book_admission(hit)
            sequence.computed_tok = computed
        return sequence.cached_tok, sequence.recomputed_tok

    assert restarted(0, 30, computed=50) == (0, 20)
    assert restarted(0, 80, computed=50) == (30, 0)


@pytest.mark.parametrize(
    ("engine", "blocks", "expected"),
    [({"max_model_len": 512}, 1000, "max_model_len holds 512"), ({}, 30, "the KV cache holds 480")],
)
def test_a_call_that_can_never_fit_is_refused_with_numbers(engine, blocks, expected):
    with pytest.raises(UserError, match=expected) as caught:
        serve([(0.0, (("p", 400),), 200)], kv_blocks=blocks, **engine)
    assert "600 tokens (400 prompt + 200 output)" in str(caught.value)
    assert f"leaves room for {(512 if engine else 480) - 400} output tokens" in str(caught.value)


# -- laws ----------------------------------------------------------------------------------------------------

# Arrival times are multiples of a number that no sum of step times hits.
workloads = st.lists(
    st.tuples(
        st.integers(0, 60).map(lambda k: k * 0.031371), st.integers(0, 3), st.integers(1, 90), st.integers(1, 60)
    ).map(lambda c: (c[0], (("shared", 20 * c[1]), (("own", c[2]), c[2]))[c[1] == 0 :], c[3])),
    min_size=1,
    max_size=12,
)
engines = st.fixed_dictionaries(
    {
        "kv_blocks": st.sampled_from([27, 30, 40, 1000]),
        "max_num_seqs": st.sampled_from([1, 2, 5, 16]),
        "max_num_batched_tokens": st.sampled_from([16, 33, 512]),
        "block_size": st.sampled_from([8, 16]),
        "enable_prefix_caching": st.booleans(),
    }
)


@given(workloads, engines)
@settings(deadline=None, max_examples=120)
def test_macro_steps_give_the_timeline_of_single_steps(calls, engine):
    fast, fast_records = serve(calls, **engine)
    slow, slow_records = serve(calls, step_by_step=True, **engine)
    for a, b in zip(fast_records, slow_records):
        assert (a.call_id, a.cached_tok, a.preemptions, a.recomputed_tok) == (
            b.call_id,
            b.cached_tok,
            b.preemptions,
            b.recomputed_tok,
        )
        for name in ("submitted_s", "scheduled_s", "first_token_s", "finished_s"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9, abs=1e-15)
    assert fast.energy_j == pytest.approx(slow.energy_j, rel=1e-9)
    assert fast.shares_s == pytest.approx(slow.shares_s, rel=1e-9)
    assert (fast.cache.peak_held, fast.peak_running, fast.computed_tok) == (
        slow.cache.peak_held,
        slow.peak_running,
        slow.computed_tok,
    )
    # The coarser power trace lies on the finer one: same energy up to every one of its edges.
    edges, watts = fast.power_trace()
    fine_edges, fine_watts = slow.power_trace()
    fine = np.interp(edges, fine_edges, np.concatenate([[0.0], np.cumsum(fine_watts * np.diff(fine_edges))]))
    assert np.concatenate([[0.0], np.cumsum(watts * np.diff(edges))]) == pytest.approx(fine, rel=1e-9, abs=1e-9)


@given(workloads, engines)
@settings(deadline=None, max_examples=60)
def test_every_step_keeps_the_limits_of_the_engine(calls, engine):
    recorder = Recorder()
    server, _ = serve(calls, physics=recorder, step_by_step=True, **engine)
    for batch in recorder.batches:
        assert 1 <= batch.new_tok <= engine["max_num_batched_tokens"]
        assert len(batch.prefill) + len(batch.decode_context_tok) <= engine["max_num_seqs"]
    assert sum(batch.new_tok for batch in recorder.batches) == server.computed_tok


@given(workloads, engines)
@settings(deadline=None, max_examples=120)
def test_conservation_laws(calls, engine):
    server, records = serve(calls, **engine)
    wall, pool = server.env.now, engine["kv_blocks"]
    assert not server.scheduler.waiting and not server.scheduler.running
    # memory: everything is given back, nothing was ever over the pool
    assert server.cache.held == 0
    assert server.cache.free + server.cache.idle_blocks == pool
    assert 0 < server.cache.peak_held <= pool
    assert server.peak_running <= engine["max_num_seqs"]
    # work: what went through the model is what was asked for, less hits, plus recomputation
    asked = sum(r.prompt_tok - r.cached_tok + r.output_tok - 1 + r.recomputed_tok for r in records)
    assert server.computed_tok == asked
    assert all(0 <= r.cached_tok < r.prompt_tok and r.recomputed_tok >= 0 for r in records)
    assert all(r.recomputed_tok == 0 for r in records if not r.preemptions)
    # time: order, makespan bounds
    assert all(r.submitted_s <= r.scheduled_s < r.first_token_s <= r.finished_s for r in records)
    busy = sum(server.shares_s.values())
    assert max(r.finished_s for r in records) == pytest.approx(wall)
    assert wall * (1 + 1e-12) >= max(r.submitted_s + r.output_tok * PHYSICS.base_s for r in records)
    assert busy >= PHYSICS.token_s * server.computed_tok
    # no idling while there is work: the idle time is that of nobody being in the house
    present = sorted((r.submitted_s, r.finished_s) for r in records)
    empty, until = 0.0, 0.0
    for come, leave in present:
        empty, until = empty + max(0.0, come - until), max(until, leave)
    assert wall - busy == pytest.approx(empty, abs=1e-9)
    # energy
    edges, watts = server.power_trace()
    assert edges[0] == 0.0
    assert edges[-1] == pytest.approx(wall)
    assert float((watts * np.diff(edges)).sum()) == pytest.approx(server.energy_j)
    assert server.energy_j == pytest.approx(PHYSICS.busy_w * busy + PHYSICS.idle_power_w * (wall - busy))
    # first come, first served
    ordered = sorted(records, key=lambda r: r.call_id)
    assert all(a.scheduled_s <= b.scheduled_s for a, b in pairwise(ordered))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be a whole number >= 1"),
        ({"block_size": 2.5}, "block_size must be a whole number >= 1"),
        ({"max_model_len": -1}, "max_model_len must be a whole number >= 1"),
        ({"gpu_memory_utilization": 1.2}, "gpu_memory_utilization must be above 0"),
        ({"max_num_batched_tokens": 100}, "must be at least max_num_seqs"),
    ],
)
def test_bad_settings(bad, expected):
    with pytest.raises(UserError, match=expected):
        EngineSettings(**bad)
